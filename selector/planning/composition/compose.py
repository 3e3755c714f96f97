"""The myopic composition of metrics: several nominate channels, the oracle measures, one goes.

After Persand, Anderson and Gregg, Composition of Saliency Metrics for Channel Pruning with a Myopic
Oracle, arXiv 2004.03376: over the whole network, one channel at a time, without retraining.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from selector.data.batches import Batches
from selector.data.exclusive import one_at_a_time
from selector.data.forward import probe_inputs
from selector.data.loss import Loss, LossChange
from selector.data.sampling import Draw
from selector.network.compensation import (
    Shift,
    apply_shifts,
    find_absorbers,
    measure_means,
    shifts_of,
)
from selector.network.copying import copy_of
from selector.network.costs import Costs, Measure, saved_per_channel
from selector.network.groups import Group
from selector.network.layers import CONVOLUTION
from selector.network.reindexing import shrink_all
from selector.network.surgery import apply_cuts, cuts_of, outputs_gone
from selector.network.tracing import Groups
from selector.oracle.oracle import Oracle
from selector.planning.composition.myopic import Channel, Myopic, nominate
from selector.statistics.collect import measure_signals
from selector.statistics.statistic import Need


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the composition."""

    removed: tuple[Channel, ...]
    """Numbered as in the network before the first step; the best first."""
    nominated_by: tuple[tuple[str, ...], ...]
    """Of each removed channel, the metrics that nominated it."""
    measured: tuple[LossChange | None, ...]
    """Of each removed channel alone; None where there was nothing to choose."""
    costs: Costs
    """What is left."""
    oracle_forwards: int
    """Images times networks evaluated by the oracle up to now, the uncut network included."""
    scoring_forwards: int
    """Images read for scores and means up to now."""
    network: nn.Module
    """The network that is left; the next step changes it."""


def of_convolutions(model: nn.Module, groups: Groups) -> Groups:
    """Those groups whose producers are all convolutions, as the paper prunes them."""
    kept = {
        name: group
        for name, group in groups.prunable.items()
        if all(isinstance(model.get_submodule(p), CONVOLUTION) for p in group.producers)
    }
    return replace(groups, prunable=kept)


@one_at_a_time
def compose_myopically(
    model: nn.Module,
    groups: Groups,
    draw: Draw,
    myopic: Myopic,
    *,
    generator: torch.Generator,
    measure: Measure = "weights",
    least: Mapping[str, int] | None = None,
    loss: Loss | None = None,
) -> Iterator[Step]:
    """Remove channels from a copy of a network, the least harmful of the nominated first.

    Before each step every metric ranks all channels of the network, the lowest score first; the
    rankings nominate in turn, one place after the other, until there are enough distinct
    candidates; the oracle measures each alone; the best go, with all that is coupled to them.

    Args:
        model: A trained network; a copy is cut.
        groups: Its groups, as `find_groups` gives them, or some of them.
        draw: Where images come from; see `drawn_from`.
        myopic: The pool of metrics, and how many of what.
        generator: Of the images.
        measure: The cost by which `per_weight_scores` and `per_weight_loss` divide.
        least: Channels that a group keeps at least, by name; one by default.
        loss: Mean loss of a batch; cross-entropy by default.

    Yields:
        Steps, until nothing more may go; stop whenever enough is gone.

    Raises:
        SelectorError: Too few images to draw from; a score or loss that is not finite.
    """
    walk = _Composition(copy_of(model), groups, draw, myopic, generator, measure, least or {}, loss)
    while True:
        step = walk.step()
        if step is None:
            return
        yield step


class _Composition:
    """The network on its way, and what the way has cost."""

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        draw: Draw,
        myopic: Myopic,
        generator: torch.Generator,
        measure: Measure,
        least: Mapping[str, int],
        loss: Loss | None,
    ) -> None:
        self._model, self._groups, self._draw, self._myopic = model, groups, draw, myopic
        self._generator, self._measure, self._least, self._loss = generator, measure, least, loss
        self._kept = {name: list(range(g.channels)) for name, g in groups.prunable.items()}
        self._oracle_forwards = self._scoring_forwards = 0
        self._checked = False

    def step(self) -> Step | None:
        """Score, nominate, measure, cut; None when nothing more may go."""
        open_ = {n: g for n, g in self._groups.prunable.items() if self._spare(g) > 0}
        if not open_:
            return None
        scoring = self._draw(self._myopic.scoring_images, self._generator)
        rankings = self._rankings(open_, scoring)
        nominated = nominate(rankings, self._myopic.candidates)
        if not nominated:
            return None
        means = None
        if self._myopic.mode == "compensated":
            means = measure_means(self._model, scoring, open_.values())
            self._scoring_forwards += self._myopic.scoring_images
        changes = self._changes(list(nominated), means)
        chosen = self._best(list(nominated), changes)
        removed = tuple((name, self._kept[name][c]) for name, c in chosen)
        self._cut(chosen, scoring, means)
        return Step(
            removed=removed,
            nominated_by=tuple(tuple(nominated[channel]) for channel in chosen),
            measured=tuple(changes.get(channel) for channel in chosen),
            costs=self._groups.costs,
            oracle_forwards=self._oracle_forwards,
            scoring_forwards=self._scoring_forwards,
            network=self._model,
        )

    def _spare(self, group: Group) -> int:
        return group.channels - max(1, self._least.get(group.name, 1))

    def _saved(self, group: Group) -> float:
        return max(saved_per_channel(self._groups.costs, group, self._measure), 1e-12)

    def _rankings(self, groups: Mapping[str, Group], scoring: Batches) -> dict[str, list[Channel]]:
        """Every metric's order of all channels; equal scores go by group and number."""
        pool = self._myopic.pool
        needs = frozenset[Need]().union(*(metric.needs for metric in pool))
        signals = measure_signals(
            self._model, scoring, groups, needs=needs, loss=self._loss, generator=self._generator
        )
        if needs - {"weights", "normalisation", "flow"}:
            self._scoring_forwards += self._myopic.scoring_images
        found = {}
        for metric in pool:
            scored: list[tuple[float, Channel]] = []
            for name, group in groups.items():
                if metric.applies(signals[name]):
                    values = metric.checked(name, signals[name])
                    if self._myopic.per_weight_scores:
                        values = values / self._saved(group)
                    scored += [(value, (name, c)) for c, value in enumerate(values.tolist())]
            found[metric.name] = [c for _, c in sorted(scored, key=lambda pair: pair[0])]
        return found

    def _changes(
        self, channels: Sequence[Channel], means: Mapping[str, Tensor] | None
    ) -> dict[Channel, LossChange]:
        """The loss change of each channel alone; none where there is nothing to choose."""
        if len(channels) <= self._myopic.channels_per_step:
            return {}
        sets: dict[Group, list[tuple[int]]] = {}
        for name, number in channels:
            sets.setdefault(self._groups.prunable[name], []).append((number,))
        oracle = Oracle(self._myopic.mode, means, check=not self._checked)
        images = self._draw(self._myopic.images, self._generator)
        found = oracle.measure(self._model, images, sets, loss=self._loss)
        self._checked = True
        self._oracle_forwards += found.image_forwards
        return {
            (group.name, asked[0]): change
            for group, some in sets.items()
            for asked, change in zip(some, found.changes[group], strict=True)
        }

    def _best(
        self, channels: list[Channel], changes: Mapping[Channel, LossChange]
    ) -> list[Channel]:
        """The channels that go, the best first; no group is left with less than it must keep."""
        if changes:
            channels = sorted(channels, key=lambda c: self._price(c, changes[c].nats))
        spare = {name: self._spare(group) for name, group in self._groups.prunable.items()}
        chosen: list[Channel] = []
        for channel in channels:
            if spare[channel[0]] > 0 and len(chosen) < self._myopic.channels_per_step:
                spare[channel[0]] -= 1
                chosen.append(channel)
        return chosen

    def _price(self, channel: Channel, nats: float) -> float:
        """What is compared: the loss change, or that per unit saved.

        Where the loss falls, dividing would favour the small: there a unit saved counts for more.
        """
        if not self._myopic.per_weight_loss:
            return nats
        saved = self._saved(self._groups.prunable[channel[0]])
        return nats / saved if nats > 0 else nats * saved

    def _cut(
        self, chosen: Sequence[Channel], scoring: Batches, means: Mapping[str, Tensor] | None
    ) -> None:
        sets: dict[str, list[int]] = {}
        for name, number in chosen:
            sets.setdefault(name, []).append(number)
        removals = [(self._groups.prunable[name], numbers) for name, numbers in sets.items()]
        cuts = cuts_of(removals)
        shifts: list[Shift] = []
        if means is not None:
            absorbers = find_absorbers(self._model, probe_inputs(self._model, scoring))
            for group, numbers in removals:
                shifts += shifts_of(self._model, group, numbers, means, absorbers)
        apply_cuts(self._model, cuts)
        apply_shifts(self._model, shifts, outputs_gone(cuts))
        self._groups = shrink_all(self._groups, removals)
        for name, numbers in sets.items():
            self._kept[name] = [c for i, c in enumerate(self._kept[name]) if i not in set(numbers)]
