"""The true loss change of removing channel sets: the ground truth of labels and of verification.

Candidates loop inside the data loop, so that only one batch is held; every batch sees all of them,
and differences to the whole network are paired image by image.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm import tqdm

from selector.engines import Engine, EngineName, Fast, Masked, Removal, make_engine, same_outputs
from selector.errors import SelectorError
from selector.groups import ChannelSet, Group, find_group
from selector.objective import Loss, Objective, check_finite
from selector.reading import (
    Batches,
    batch_size,
    call,
    check_repeatable,
    evaluating,
    probe_inputs,
    read,
    rows,
)
from selector.recalibration import recalibrated_changes
from selector.rivals import Channels, LossChange, Rivals, summary
from selector.shifts import Means, find_absorbers, measure_means, shifts_of
from selector.tracing import find_groups

Mode = Literal["plain", "compensated"]

MEMORY_BYTES = 2**31
"""What the fast engine may keep of a batch by default."""


@dataclass(frozen=True)
class Measured:
    """Loss changes, and what they cost."""

    changes: Mapping[Group, list[LossChange]]
    """In the order asked."""
    image_forwards: int
    """Images times networks evaluated, the whole network included."""
    image_forwards_saved: int
    """What early stopping did without."""


class OracleError(SelectorError):
    """The oracle had to stop; `measured` holds what it had found by then."""

    measured: Mapping[Group, list[LossChange | None]]


@dataclass(frozen=True)
class Oracle:
    """How loss changes are measured."""

    mode: Mode = "plain"
    """`plain`: a removed channel is gone; `compensated`: it is replaced by its mean, which the
    consumers' biases, or the BatchNorm behind them, absorb."""
    means: Means | None = None
    """Mean inputs of the consumers, for the mode `compensated`; see `measure_means`."""
    engine: EngineName = "fast"
    """`fast` computes again only what depends on the channels, `masked` runs the whole network,
    `reference` cuts the channels out physically: one answer."""
    stop: float | None = None
    """Stop measuring a candidate once it is this many standard errors worse than the best of those
    with as many channels of its group; None measures all to the end."""
    memory_bytes: int = MEMORY_BYTES
    """What the fast engine may keep; larger batches are read in parts."""
    check: bool = True
    """Make sure that the network gives the same outputs twice and that its trace holds. Off only in
    loops that have done so for this network; a group that is new to the engine is tried even so."""

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.mode not in ("plain", "compensated"):
            raise SelectorError(f"unknown mode {self.mode!r}; known: plain, compensated")
        if self.engine not in ("fast", "masked", "reference"):
            raise SelectorError(f"unknown engine {self.engine!r}; known: fast, masked, reference")
        if (self.mode == "compensated") != (self.means is not None):
            raise SelectorError(
                "means belong to mode='compensated', and that mode needs them; see measure_means"
            )
        if self.stop is not None and not self.stop > 0:
            raise SelectorError(f"stop={self.stop} must be a number of standard errors above zero")
        if self.memory_bytes < 1:
            raise SelectorError(f"memory_bytes={self.memory_bytes} must be above zero")

    def measure(
        self,
        model: nn.Module,
        batches: Batches,
        candidates: Mapping[Group, Sequence[ChannelSet]],
        *,
        loss: Loss | None = None,
        progress: bool = False,
    ) -> Measured:
        """Measure what each channel set does to the loss, over one reading of the data.

        Args:
            model: The network; left exactly as found.
            batches: Re-iterable of (inputs, targets), the same images on every reading.
            candidates: Group -> channel sets; equal sets are measured once.
            loss: Mean loss of a batch; cross-entropy by default.
            progress: Show a progress bar.

        Raises:
            SelectorError: A channel out of range, repeated, or all of them; batches that change
                between readings.
            OracleError: A network that gives other outputs for the same images, or a loss that is
                not finite; `measured` holds what was found before.
        """
        check_repeatable(batches)
        sets = {group: [group.checked(s) for s in asked] for group, asked in candidates.items()}
        distinct = {g: list(dict.fromkeys(s for s in asked if s)) for g, asked in sets.items()}
        rivals = Rivals(distinct, self.stop)
        with torch.no_grad(), evaluating(model):
            removals = self._removals(model, batches, distinct)
            bench = _Bench(model, self, Objective(loss), rivals, removals, progress)
            try:
                for number, (inputs, targets) in enumerate(read(model, batches)):
                    bench.measure_batch(inputs, targets, number)
            except SelectorError as error:
                raise _interrupted(error, sets, rivals, bench.images) from error
        if bench.images < 2:
            raise SelectorError("one image has no standard error; pass at least two to the oracle")
        changes = {
            group: [summary(rivals.differences(group, s), bench.images) for s in asked]
            for group, asked in sets.items()
        }
        saved = bench.images * (1 + rivals.count) - bench.image_forwards
        return Measured(changes, bench.image_forwards, saved)

    def _removals(
        self, model: nn.Module, batches: Batches, candidates: Mapping[Group, Sequence[Channels]]
    ) -> dict[tuple[Group, Channels], Removal]:
        absorbers = {}
        if self.means is not None:
            absorbers = find_absorbers(model, probe_inputs(model, batches))
        return {
            (group, channels): (
                channels,
                ()
                if self.means is None
                else shifts_of(model, group, channels, self.means, absorbers),
            )
            for group, sets in candidates.items()
            for channels in sets
        }


class _Bench:
    """The candidates on the engine, batch after batch."""

    def __init__(
        self,
        model: nn.Module,
        oracle: Oracle,
        objective: Objective,
        rivals: Rivals,
        removals: Mapping[tuple[Group, Channels], Removal],
        progress: bool,
    ) -> None:
        self._model, self._oracle, self._objective = model, oracle, objective
        self._rivals, self._removals, self._progress = rivals, removals, progress
        self._engine: Engine = make_engine(model, oracle.engine, check=oracle.check)
        self.images = self.image_forwards = 0

    def measure_batch(self, inputs: object, targets: object, number: int) -> None:
        """All candidates that are left, on one batch; in parts where it would not fit."""
        if number == 0 and self._oracle.check:
            outputs = check_deterministic(self._model, inputs)
            few = min(2, batch_size(inputs))
            if isinstance(self._engine, Fast) and not same_outputs(
                self._engine.load(rows(inputs, 0, few)), rows(outputs, 0, few)
            ):
                # A trace of a network that has been changed since.
                self._engine = Masked(self._model)
        found: dict[tuple[Group, Channels], list[Tensor]] = {}
        left = self._rivals.left()
        for some, wanted in self._parts(inputs, targets):
            before = self._losses(self._engine.load(some), wanted, number)
            groups = tqdm(
                left.items(), f"oracle, batch {number}", disable=not self._progress, leave=False
            )
            for group, sets in groups:
                asked = [self._removals[group, channels] for channels in sets]
                outputs = self._engine.outputs(group, asked)
                for channels, output in zip(sets, outputs, strict=True):
                    after = self._losses(output, wanted, number)
                    found.setdefault((group, channels), []).append((after - before).cpu())
        # Only whole batches count, so that all candidates have seen the same images.
        for (group, channels), differences in found.items():
            self._rivals.add(group, channels, torch.cat(differences))
        self.images += batch_size(inputs)
        self.image_forwards += batch_size(inputs) * (1 + sum(map(len, left.values())))
        self._rivals.finish_batch()

    def _losses(self, outputs: object, targets: object, number: int) -> Tensor:
        losses = self._objective.each(outputs, targets)
        check_finite(losses, number)
        return losses

    def _parts(self, inputs: object, targets: object) -> Iterator[tuple[object, object]]:
        images = batch_size(inputs)
        size = _images_that_fit(self._engine, inputs, self._oracle.memory_bytes)
        if size >= images:
            yield inputs, targets
            return
        for start in range(0, images, size):
            yield rows(inputs, start, start + size), rows(targets, start, start + size)


def _images_that_fit(engine: Engine, inputs: object, memory_bytes: int) -> int:
    images = batch_size(inputs)
    if not isinstance(engine, Fast):
        return images
    tried = min(2, images)
    engine.load(rows(inputs, 0, tried))
    return max(1, int(memory_bytes / (engine.bytes_kept() / tried)))


def check_deterministic(model: nn.Module, inputs: object) -> object:
    """Make sure that the network gives the same outputs for the same images, and return them.

    Raises:
        SelectorError: It does not.
    """
    outputs = call(model, inputs)
    first, again = (pytree.tree_leaves(found) for found in (outputs, call(model, inputs)))
    for one, other in zip(first, again, strict=True):
        if isinstance(one, Tensor) and one.numel() and one.is_floating_point():
            gap = float((one.double() - other.double()).abs().nan_to_num().max())
            if gap > 1e-5 * float(one.double().abs().nan_to_num().max()):
                raise SelectorError(
                    "the network gives other outputs for the same images: look for dropout that "
                    "stays on in evaluation mode (functional dropout without training=), noise, or "
                    "sampling in its forward pass"
                )
    return outputs


def _interrupted(
    error: SelectorError,
    sets: Mapping[Group, Sequence[Channels]],
    rivals: Rivals,
    images: int,
) -> OracleError:
    found: dict[Group, list[LossChange | None]] = {}
    for group, asked in sets.items():
        parts = [rivals.differences(group, channels) for channels in asked]
        found[group] = [summary(d, images) if len(d) > 1 else None for d in parts]
    stopped = OracleError(f"{error} ({images} images had been measured)" if images else str(error))
    stopped.measured = found
    return stopped


def loss_changes(
    model: nn.Module,
    batches: Batches,
    group: Group | str,
    channel_sets: Sequence[ChannelSet],
    *,
    loss: Loss | None = None,
    mode: Mode | Literal["recalibrated"] = "plain",
    calibration: Batches | None = None,
    engine: EngineName = "fast",
) -> list[LossChange]:
    """Measure what removing each of some channel sets of one group does to the loss.

    Equal sets are measured once. Each batch is read once and sees all the candidates.

    Args:
        model: The network; left exactly as found.
        batches: Re-iterable of (inputs, targets) that gives the same images on every reading.
        group: A group of `find_groups`, or its name.
        channel_sets: Channels to remove, one sequence for each candidate.
        loss: Mean loss of a batch; cross-entropy by default.
        mode: `plain` removes the channels; `compensated` puts their means in their place;
            `recalibrated` estimates the BatchNorm statistics anew after each removal, and is dear.
        calibration: Images for the means or the statistics; `batches` by default.
        engine: `fast`, `masked` or `reference`; they give the same numbers.

    Returns:
        One `LossChange` for each channel set, in the order asked.

    Raises:
        SelectorError: Unknown group; a channel out of range, repeated, or all of them; batches
            that change between readings; a network that is not deterministic; a loss that is not
            finite (an `OracleError` then holds what was measured before).
    """
    if isinstance(group, str):
        found = find_groups(model, probe_inputs(model, batches)).required()
        group = find_group(found, group)
    if mode == "recalibrated":
        return recalibrated_changes(
            model, batches, group, channel_sets, calibration=calibration or batches, loss=loss
        )
    means = None
    if mode == "compensated":
        means = measure_means(model, calibration or batches, [group])
    oracle = Oracle(mode, means, engine)
    return oracle.measure(model, batches, {group: channel_sets}, loss=loss).changes[group]
