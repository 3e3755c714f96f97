r"""`reconstruct`: what pruning left of a network is refitted to give what the whole network gave.

Both networks are walked together in forward order. A layer with weights is refitted so that on the
pruned network's actual inputs it gives the unpruned network's outputs of its remaining channels:

.. math:: \min_{W, b} \sum_p \| y_p - W x_p - b \|^2 + \lambda \| W - W_0 \|^2

with W_0 the present weights and p over sampled positions of the calibration images; lambda is
chosen on a held-out fifth of the images. No labels are read.

Source:
    He et al., arXiv 1707.06168 (least squares layer by layer); the walk over all layers, with the
    ridge towards the present weights, is this project's (METHOD.md, section 8).
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from selector.data.batches import Batches, batch_size, check_repeatable
from selector.data.checks import check_model
from selector.data.exclusive import one_at_a_time
from selector.data.forward import device_of, evaluating, probe_inputs
from selector.data.own_forward import Forward, own_forward
from selector.network.attention import all_opened
from selector.network.copying import copy_of, uncompiled
from selector.network.layers import NORMALISATION
from selector.network.surgery import Cut
from selector.repair.correspondence import (
    History,
    Kept,
    is_history,
    kept_after_cuts,
    kept_after_history,
    kept_positions_of,
)
from selector.repair.graph_walk import GraphWalk, UnwalkableError
from selector.repair.norm_statistics import InputMoments, carry_over
from selector.repair.pruned import Pruned, parts_of
from selector.repair.refitting import (
    NotRowsError,
    Sampling,
    apply_step,
    gather,
    not_finite,
    unknowns_of,
)
from selector.repair.report import LayerRepair, RepairReport
from selector.repair.ridge_choice import choose_step
from selector.repair.schedule import Schedule, checked_schedule, has_state, shared_weights, why_not
from selector.repair.walk import HookWalk, Visit, Walk

LOG = logging.getLogger("selector")

MEMORY_BYTES = 2**31
POSITIONS = 64
HELD_OUT = 5
"""One image in so many is held out for choosing the ridge."""
SEEDS_PER_LAYER = 1009
"""More than a layer's calls in one forward pass, each of which has a seed of its own."""


@dataclass(frozen=True)
class Repair:
    """How a repair goes about it."""

    frozen: bool = False
    """Whether layers with `requires_grad=False` are refitted, too."""
    positions: int = POSITIONS
    """Output positions of each image; more where equations are few, fewer where they are plenty."""
    seed: int = 0
    """Of the held-out images and the sampled positions."""
    memory_bytes: int = MEMORY_BYTES
    """For the activations of all batches that are kept between two layers."""
    hooks: bool = False
    """Walk by hooks even where torch.fx can trace the networks: slower, same numbers."""


class Reconstructed(NamedTuple):
    """A repaired network, and what was done to every layer."""

    model: nn.Module
    """A copy; the networks passed in are as they were."""
    report: RepairReport


@one_at_a_time
def reconstruct(
    original: nn.Module,
    pruned: nn.Module | Pruned,
    batches: Batches,
    *,
    kept: Kept | Sequence[Cut] | History | None = None,
    how: Repair | None = None,
    forward: Forward | None = None,
) -> Reconstructed:
    """Refit what is left of a network in closed form, on a copy, without labels.

    Args:
        original: The unpruned network; its outputs are the targets.
        pruned: What pruning left of it: a network, or the result of `prune`.
        batches: Re-iterable of (inputs, targets); the targets are not read.
        kept: What is left of every layer; by default what the result of `prune` says. Cuts in
            positions of the unpruned network, or output positions by layer, where layers that lost
            nothing may be missing; or the history of a pruning by Torch-Pruning, as its
            `pruner.pruning_history()` gives it.
        how: Settings; the defaults suit 64 images or more.
        forward: Runs both networks on a batch, as for `prune`.

    Returns:
        The repaired copy, and what was done to every layer.

    Raises:
        SelectorError: Networks that do not belong together, activations that are no numbers,
            outputs that change between two runs, unusable batches.
    """
    check_model(original, "original")
    if not hasattr(pruned, "cuts"):
        check_model(pruned, "pruned")
    model, cuts = parts_of(pruned)
    with torch.inference_mode(False):
        # Else a caller's inference mode would make the copy one that cannot be written to.
        repaired = copy_of(model)
        report = reconstruct_in_place(
            uncompiled(original), repaired, batches, kept=cuts if kept is None else kept, how=how
        )
    return Reconstructed(repaired, report)


def reconstruct_in_place(
    original: nn.Module,
    pruned: nn.Module,
    batches: Batches,
    *,
    kept: Kept | Sequence[Cut] | History | None = None,
    how: Repair | None = None,
) -> RepairReport:
    """`reconstruct` on the pruned network itself; where an error is raised, it is half done."""
    check_repeatable(batches)
    if is_history(kept):
        inputs = probe_inputs(original, batches)
        kept = kept_after_history(original, kept, inputs, pruned=pruned)
    elif kept is not None and not isinstance(kept, Mapping):
        kept = kept_after_cuts(original, cast(Sequence[Cut], kept))
    left = kept_positions_of(original, pruned, kept)
    device = device_of(original)
    with (
        evaluating(original),
        evaluating(pruned),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        all_opened(original),
        all_opened(pruned),
    ):
        schedule = checked_schedule(original, pruned, probe_inputs(original, batches))
        return _Reconstruction(original, pruned, batches, left, schedule, how or Repair()).run()


@dataclass(eq=False)
class _Reconstruction:
    """One walk."""

    original: nn.Module
    pruned: nn.Module
    batches: Batches
    kept: Mapping[str, Tensor]
    schedule: Schedule
    how: Repair

    def __post_init__(self) -> None:
        self._images = sum(batch_size(*batch) for batch in self.batches)
        order = torch.randperm(self._images, generator=torch.Generator().manual_seed(self.how.seed))
        self._held_out = torch.zeros(self._images, dtype=torch.bool)
        self._held_out[order[: -(-self._images // HELD_OUT) if self._images > 1 else 0]] = True
        self._hooks = HookWalk(self.original, self.pruned, self.batches)
        self._shared = shared_weights(self.pruned)
        self._notes: list[str] = []

    def run(self) -> RepairReport:
        """All layers in forward order."""
        if self._images == 1:
            self._notes.append("one image: none is left to check a fit on, so no weight changes")
        walk = self._walk()
        names = list(self.schedule.calls)
        done = [self._layer(walk, name, number) for number, name in enumerate(names)]
        idle = [
            LayerRepair(name, "skipped", "it is not called in a forward pass")
            for name, layer in self.pruned.named_modules()
            if has_state(layer) and name not in self.schedule.calls
        ]
        return RepairReport((*done, *idle), self._images, tuple(self._notes))

    def _walk(self) -> Walk:
        if not self.how.hooks and own_forward(self.original) is None:
            try:
                return GraphWalk(self.original, self.pruned, self.batches, self.how.memory_bytes)
            except UnwalkableError as error:
                slower = f"repair walks by hooks, which is slower: {error}"
                LOG.warning("%s", slower)
                self._notes.append(slower)
        return self._hooks

    def _layer(self, walk: Walk, name: str, number: int) -> LayerRepair:
        reason = why_not(self.pruned, name, self._shared, frozen=self.how.frozen)
        if reason is not None:
            return LayerRepair(name, "skipped", reason)
        is_norm = isinstance(self.pruned.get_submodule(name), NORMALISATION)
        one = walk.visits(name)
        found = self._statistics(name, one) if is_norm else self._refit(name, number, one)
        if self.schedule.calls[name] == 1:
            return found
        # Later calls read what earlier ones gave: only now is that near what it will be.
        every = self._hooks.all_visits(name)
        return self._statistics(name, every) if is_norm else self._refit(name, number, every)

    def _statistics(self, name: str, visits: Iterable[Visit]) -> LayerRepair:
        """Set a BatchNorm's statistics."""
        before, now = InputMoments(), InputMoments()
        for visit in visits:
            before.add(visit.original_inputs)
            now.add(visit.inputs)
        if not (before.is_finite() and now.is_finite()):
            raise not_finite(name)
        theirs, ours = (m.get_submodule(name) for m in (self.original, self.pruned))
        if carry_over(theirs, ours, self.kept[name], before, now):
            return LayerRepair(name, "statistics")
        return LayerRepair(name, "skipped", "it reads no tensor")

    def _refit(self, name: str, number: int, visits: Iterable[Visit]) -> LayerRepair:
        """Refit a convolution or linear layer."""
        layer = self.pruned.get_submodule(name)
        if self._images == 1:
            for _ in visits:
                pass
            return LayerRepair(name, "kept", "one image")
        own = cast(nn.Parameter | None, layer.bias)
        bias = own is not None and (own.requires_grad or self.how.frozen)
        absorbed = own is None and self._absorbs(self.schedule.norm_behind.get(name))
        sampling = Sampling(
            self._held_out, self.how.positions, self.how.seed + SEEDS_PER_LAYER * number
        )
        try:
            equations = gather(
                name, layer, self.kept[name], visits, sampling, intercept=bias or absorbed
            )
        except NotRowsError as error:
            return LayerRepair(name, "skipped", str(error))
        if not (equations.fitting.count and equations.held_out.count):
            return LayerRepair(name, "skipped", "it reads no tensor")
        choice = choose_step(equations.fitting, equations.held_out, bias=bias, absorbed=absorbed)
        apply_step(layer, choice.step, equations.origin)
        unknowns = unknowns_of(layer, intercept=bias or absorbed)
        notes = []
        if bias and choice.step.change is None and bool(choice.step.shift.any()):
            notes.append("only its bias changed")
        if equations.count < unknowns:
            notes.append("fewer equations than unknowns")
        return LayerRepair(
            name,
            "kept" if choice.step.ridge is None else "refitted",
            ", ".join(notes),
            choice.before,
            choice.after,
            choice.step.ridge,
            equations.count,
            unknowns,
        )

    def _absorbs(self, norm: str | None) -> bool:
        """Whether a BatchNorm takes up whatever mean it reads."""
        if norm is None:
            return False
        layer = self.pruned.get_submodule(norm)
        if getattr(layer, "running_mean", None) is None:
            return True
        return why_not(self.pruned, norm, self._shared, frozen=self.how.frozen) is None
