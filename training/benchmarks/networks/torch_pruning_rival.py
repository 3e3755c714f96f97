"""Torch-Pruning's own pruner with its own importances, driven to a share of the MACs in rounds."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch_pruning as tp
from torch import nn

from selector.data.batches import Batches, batch_size, rows
from selector.data.forward import call, evaluating, probe_inputs, read
from selector.data.loss import Objective
from selector.errors import SelectorError
from selector.network.batchnorm import recalibrate_batchnorm
from selector.network.copying import copy_of
from selector.network.costs import count_costs
from selector.network.coupling.dependency_graph import candidate_groups
from selector.network.tracing import Groups, find_groups
from selector.pruning.apply import FineTune

Ranking = Literal["local", "global"]
STEPS = 1000
"""Ratios that a pruner may stand at, evenly from 0 to 1."""


@dataclass(frozen=True)
class Importance:
    """One of Torch-Pruning's importances, as its class makes it by default."""

    make: Callable[[], tp.importance.Importance]
    needs: Literal["weights", "gradient", "gradient of each image"] = "weights"


History = tuple[Any, ...]
"""What was pruned so far, as Torch-Pruning writes it down."""


class TorchPruned(NamedTuple):
    """A network that Torch-Pruning made smaller."""

    model: nn.Module
    histories: list[History]
    """After each round, from the unpruned network on."""


IMPORTANCES: Mapping[str, Importance] = {
    "l1": Importance(lambda: tp.importance.MagnitudeImportance(p=1)),
    "l2": Importance(lambda: tp.importance.MagnitudeImportance(p=2)),
    "batchnorm": Importance(tp.importance.BNScaleImportance),
    "taylor": Importance(tp.importance.TaylorImportance, "gradient"),
    "fpgm": Importance(tp.importance.FPGMImportance),
    "lamp": Importance(tp.importance.LAMPImportance),
    "hessian": Importance(tp.importance.HessianImportance, "gradient of each image"),
}


def prune_with_torch_pruning(
    model: nn.Module,
    batches: Batches,
    importance: str,
    ranking: Ranking,
    *,
    keep_macs: float,
    rounds: int,
    max_ratio: float = 0.9,
    finetune: FineTune | None = None,
) -> TorchPruned:
    """Prune a copy as `selector.prune` would: the same rounds, recalibration and MACs.

    Before each round the gradients are measured again; within it the pruner takes small steps
    until the round's limit is met. Layers that cannot lose outputs, the network's own outputs among
    them, are named to it as ignored: it would cut them and break the network.

    Args:
        model: A trained network.
        batches: Images for gradients and recalibration.
        importance: One of `IMPORTANCES`.
        ranking: Channels compared within a group, or over the whole network.
        keep_macs: Share of the multiply-accumulates that stays at most.
        rounds: The MACs fall by the same factor in each.
        max_ratio: Largest share of a layer's channels that may go.
        finetune: Called with the network and the number of the round after each.

    Returns:
        The pruned copy, and Torch-Pruning's history after each round.

    Raises:
        SelectorError: An unknown importance, a target that it does not reach, or an error of
            Torch-Pruning's own on this network.
    """
    if importance not in IMPORTANCES:
        known = ", ".join(IMPORTANCES)
        raise SelectorError(f"unknown importance {importance!r} of Torch-Pruning; known: {known}")
    own = IMPORTANCES[importance]
    small, histories = copy_of(model), list[History]()
    probe = probe_inputs(small, batches)
    with _faults_named(f"torch-pruning {importance} {ranking}"):
        walk = _StepwisePruner(small, probe, own.make(), ranking, max_ratio)
        for number in range(1, rounds + 1):
            _measure(small, batches, walk.pruner.importance, own)
            walk.until(keep_macs ** (number / rounds))
            recalibrate_batchnorm(small, batches)
            histories.append(tuple(walk.pruner.pruning_history()))
            if finetune is not None:
                finetune(small, number)
    small.zero_grad(set_to_none=True)
    return TorchPruned(small, histories)


class _StepwisePruner:
    """A pruner on its way from ratio 0 to 1, and the MACs that the network has left."""

    def __init__(
        self,
        model: nn.Module,
        probe: object,
        importance: tp.importance.Importance,
        ranking: Ranking,
        max_ratio: float,
    ) -> None:
        self._model, self._probe = model, probe
        groups = find_groups(model, probe)
        self._start = groups.costs.total("macs")
        # Local ranking ignores max_pruning_ratio, so that the ratio itself must stop there.
        self._last = int(max_ratio * STEPS) if ranking == "local" else STEPS
        with evaluating(model):
            self.pruner = tp.pruner.BasePruner(
                model,
                rows(probe, 0, 1),
                importance,
                global_pruning=ranking == "global",
                pruning_ratio=1.0,
                max_pruning_ratio=max_ratio,
                iterative_steps=STEPS,
                ignored_layers=[
                    model.get_submodule(name)
                    for name in (*groups.refused, *_followed_wrongly(model, probe, groups))
                ],
                # Its defaults are shared between all pruners, and it writes into them.
                in_channel_groups={},
                out_channel_groups={},
                num_heads={},
            )
        self._step, self._kept = 0, 1.0

    def until(self, keep_macs: float) -> None:
        """Prune on, in ever smaller steps from above, until the limit is met."""
        while self._kept > keep_macs:
            if self._step == self._last:
                raise SelectorError(
                    f"it stops at {self._kept:.1%} of the MACs, and {keep_macs:.1%} is asked"
                )
            # MACs fall ever slower with the ratio, so the mean slope up to now leads not too far.
            slope = (1 - self._kept) / self._step if self._kept < 1 else 2 / STEPS
            ahead = max(1, int((self._kept - keep_macs) / slope))
            self._step = min(self._step + ahead, self._last)
            self.pruner.current_step = self._step - 1
            self.pruner.step()
            self._kept = count_costs(self._model, self._probe).total("macs") / self._start


def _followed_wrongly(model: nn.Module, probe: object, groups: Groups) -> list[str]:
    """Producers of groups that Torch-Pruning's graph does not follow as they can be cut."""
    try:
        theirs = {group.name: group.slices for group in candidate_groups(model, probe)[0]}
    except SelectorError:
        theirs = {}
    return [
        layer
        for group in groups.prunable.values()
        if theirs.get(group.name) != group.slices
        for layer in group.producers
    ]


def _measure(
    model: nn.Module, batches: Batches, importance: tp.importance.Importance, own: Importance
) -> None:
    """The gradients of the loss over all batches, or the squares of every image's, if needed."""
    if own.needs == "weights":
        return
    singly = own.needs == "gradient of each image"
    model.zero_grad(set_to_none=True)
    if singly:
        importance.zero_grad()
    with evaluating(model), torch.enable_grad():
        for inputs, targets in read(model, batches):
            images = batch_size(targets)
            size = 1 if singly else images
            for first in range(0, images, size):
                if singly:
                    model.zero_grad(set_to_none=True)
                outputs = call(model, rows(inputs, first, first + size))
                loss = Objective().mean(outputs, rows(targets, first, first + size))
                torch.autograd.backward(loss)
                if singly:
                    importance.accumulate_grad(model)


@contextmanager
def _faults_named(who: str) -> Iterator[None]:
    """Context in which whatever fails is a `SelectorError` that says who failed.

    Torch-Pruning raises anything: AttributeError, ZeroDivisionError, TypeError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        kind = "" if isinstance(error, SelectorError) else f"{type(error).__name__}: "
        raise SelectorError(f"{who}: {kind}{error}") from error
