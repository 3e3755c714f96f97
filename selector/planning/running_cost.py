"""The cost of a network while channels are allotted, updated only where a group changes it.

A step of one group changes the layers that the group touches, and with them what the steps of the
groups that share these layers save. Everything else stays, so that a step costs the same in small
and in large networks.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from selector.network.costs import layer_total
from selector.network.latency import Clock
from selector.planning.stage import Stage
from selector.typing import Matrix, Numbers

NEAR = 1e-9
"""Share of the unpruned cost within which the limit is compared by the exact cost."""


class RunningCost(ABC):
    """A network's cost after some channels of its groups are gone."""

    jump = 0.0
    """By how much the first removal of all raises the cost, besides what it saves."""

    def __init__(self, stage: Stage, counts: Mapping[str, int]) -> None:
        """Start where `counts` channels of each group are gone.

        Costs at most `reach` may meet the limit; only the exact cost says whether they do.

        Args:
            stage: The network, its limit, and what is counted.
            counts: Group -> channels that it loses; none where it is not named.
        """
        self._stage = stage
        self.counts = {**dict.fromkeys(stage.groups.prunable, 0), **counts}
        self.limit = stage.limit
        near = NEAR * stage.start_cost
        self.reach, self._surely = self.limit + near, self.limit - near
        self.cost = stage.cost(self.counts)
        self._users: dict[str, list[str]] = {}
        for name in stage.groups.prunable:
            for layer in self._layers_of(name):
                self._users.setdefault(layer, []).append(name)

    @staticmethod
    def of(stage: Stage, counts: Mapping[str, int]) -> "RunningCost":
        """The cost that the stage's target counts: the network's size, or its latency."""
        if stage.clock is None:
            return CountedCost(stage, counts)
        return TimedCost(stage, counts, stage.clock)

    @property
    def met(self) -> bool:
        """Whether the limit is met."""
        if not self._surely < self.cost <= self.reach:
            return self.cost <= self.limit
        return self._stage.cost(self.counts) <= self.limit

    def meets(self, name: str, count: int) -> bool:
        """Whether the limit is met when a group loses `count` channels instead of those it does."""
        after = float(self.after(name, [count])[0])
        if not self._surely < after <= self.reach:
            return after <= self.limit
        return self._stage.cost({**self.counts, name: count}) <= self.limit

    def landings(self, name: str, counts: Sequence[int]) -> list[int]:
        """Those of some numbers of channels, ascending, among which is the first that `meets`.

        Most often that one alone; none where no number is enough.
        """
        after = self.after(name, counts)
        first = int((after > self.reach).sum())
        last = int((after > self._surely).sum())
        return list(counts[first : last + 1])

    def after(self, name: str, counts: Sequence[int]) -> Matrix:
        """The cost when a group loses each of these numbers of channels instead of those it does.

        Shape (counts,), to within rounding.
        """
        after: Matrix = self.cost - self.saved(name, counts)
        return after

    @abstractmethod
    def saved(self, name: str, counts: Sequence[int]) -> Matrix:
        """By how much that lowers the cost, shape (counts,)."""

    def remove(self, name: str, count: int) -> list[str]:
        """Let a group lose `count` channels in all, no fewer than it has lost.

        Returns:
            The groups whose steps save something else now.
        """
        self.cost -= float(self.saved(name, [count])[0])
        self.counts[name] = count
        self._update(name)
        return list(dict.fromkeys(n for la in self._layers_of(name) for n in self._users[la]))

    @abstractmethod
    def _layers_of(self, name: str) -> Sequence[str]:
        """The layers that a group touches."""

    @abstractmethod
    def _update(self, name: str) -> None:
        """Note that the group's count has changed."""


class CountedCost(RunningCost):
    """Multiply-accumulates, parameters or weights: bilinear in what a layer's two sides lose."""

    def __init__(self, stage: Stage, counts: Mapping[str, int]) -> None:
        """As `RunningCost`."""
        self._layers = list(stage.groups.costs.layers)
        place = {name: number for number, name in enumerate(self._layers)}
        self._touched: dict[str, tuple[Numbers, Matrix, Matrix]] = {}
        for name, group in stage.groups.prunable.items():
            lost: dict[int, list[float]] = {}
            for part in (found for found in group.sided if found.layer in place):
                sides = lost.setdefault(place[part.layer], [0.0, 0.0])
                sides[part.side == "in"] += len(part.indices) / group.channels
            outputs, inputs = np.array([*lost.values()]).reshape(-1, 2).T
            self._touched[name] = np.array([*lost], np.intp), outputs, inputs
        super().__init__(stage, counts)
        self._of_out, self._of_in, self._of_both = self._coefficients(stage)
        self._out, self._in = np.zeros((2, len(self._layers)))
        self._noted = dict.fromkeys(self.counts, 0)
        for name in self.counts:
            self._update(name)

    @staticmethod
    def _coefficients(stage: Stage) -> Matrix:
        """What each layer's cost changes by per lost output, per lost input, per lost pair."""
        layers, measure = stage.groups.costs.layers.values(), stage.measure
        whole, out, inputs, both = (
            np.array([layer_total(layer, measure, *lost) for layer in layers])
            for lost in ((0, 0), (1, 0), (0, 1), (1, 1))
        )
        return np.stack([out - whole, inputs - whole, both - out - inputs + whole])

    def saved(self, name: str, counts: Sequence[int]) -> Matrix:
        """By how much losing each of these numbers of channels instead lowers the cost."""
        layers, out, inputs = self._touched[name]
        both = self._of_both[layers]
        slope = self._of_out[layers] @ out + self._of_in[layers] @ inputs
        slope += both @ (out * self._in[layers] + inputs * self._out[layers])
        more = np.asarray(counts, np.float64) - self.counts[name]
        saved: Matrix = -more * (slope + more * (both @ (out * inputs)))
        return saved

    def _layers_of(self, name: str) -> list[str]:
        return [self._layers[place] for place in self._touched[name][0].tolist()]

    def _update(self, name: str) -> None:
        layers, out, inputs = self._touched[name]
        more = self.counts[name] - self._noted[name]
        self._out[layers] += more * out
        self._in[layers] += more * inputs
        self._noted[name] = self.counts[name]


class TimedCost(RunningCost):
    """Latency: each layer's time is the product of what its groups leave of it."""

    def __init__(self, stage: Stage, counts: Mapping[str, int], clock: Clock) -> None:
        """As `RunningCost`, by a clock."""
        self._table, self._correction = clock.table, clock.correction
        self._width = sum(clock.table.widths.values())
        super().__init__(stage, counts)
        self._gone = stage.lost(self.counts)
        self._shrunk = sum(int(share > 0) for share in self._gone.values())
        self.jump = 0.0 if self._shrunk else (self._correction - 1) * self.cost
        self._left: dict[str, dict[str, float]] = {name: {} for name in self._table.seconds}
        for name in self._gone:
            self._update(name)

    def saved(self, name: str, counts: Sequence[int]) -> Matrix:
        """By how much losing each of these numbers of channels instead lowers the cost."""
        group, table = self._stage.groups.prunable[name], self._table
        gone = np.array([self._stage.widths.lost(group, count) for count in counts])
        saved = table.rest * table.widths[name] / self._width * (gone - self._gone[name])
        for layer, (shares, factors) in table.factors[name].items():
            others = np.prod([f for n, f in self._left[layer].items() if n != name])
            falls = self._left[layer][name] - np.interp(gone, shares, factors)
            saved += table.seconds[layer] * others * falls
        # What the clock says of a network that has lost nothing is not corrected.
        other_cuts = self._shrunk - int(self._gone[name] > 0)
        factor = np.where((gone > 0) | (other_cuts > 0), self._correction, 1.0)
        whole = self.cost / (self._correction if self._shrunk else 1.0)
        lowered: Matrix = self.cost - factor * (whole - saved)
        return lowered

    def remove(self, name: str, count: int) -> list[str]:
        """As `RunningCost.remove`; the first removal of all changes what every step saves."""
        before = self._shrunk
        touched = super().remove(name, count)
        return touched if before and self._shrunk else list(self._stage.groups.prunable)

    def _layers_of(self, name: str) -> list[str]:
        return list(self._table.factors[name])

    def _update(self, name: str) -> None:
        if name in self._stage.groups.prunable:
            now = self._stage.widths.lost(self._stage.groups.prunable[name], self.counts[name])
            self._shrunk += int(now > 0) - int(self._gone[name] > 0)
            self._gone[name] = now
        for layer, (shares, factors) in self._table.factors[name].items():
            self._left[layer][name] = float(np.interp(self._gone[name], shares, factors))
