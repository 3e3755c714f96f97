"""How many channels go from every group: even shares, or where the predicted damage is least."""

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from selector.learning.damage_curve import Curve, damage_curves
from selector.learning.selector import SaliencySelector
from selector.planning.candidates import Criterion, Trial
from selector.planning.running_cost import RunningCost
from selector.planning.stage import Stage, even_ratio

Step = tuple[str, int]
"""A group, and the channels that it loses in all after the step."""


def allocate_evenly(stage: Stage) -> dict[str, int]:
    """Channels that every group loses now; the same share of each group's original width.

    Single steps are taken in the order of the share lost after half of them, so that every group
    has the allowed width that is nearest to the common share; the last step is the one that comes
    closest to the target from below. Of steps that come equally close, the first group's is taken.

    Raises:
        SelectorError: The target cannot be met; the smallest reachable value is named.
    """
    if stage.target.measure == "channels":
        return even_ratio(stage)
    stage.check_reachable()
    steps = _even_steps(stage)
    start = {**dict.fromkeys(stage.groups.prunable, 0), **stage.pinned}
    # No step saves more than the largest does now: until the target is that near, none meets it.
    largest = _largest_saving(stage)

    def near(number: int) -> bool:
        return stage.cost({**start, **dict(steps[:number])}) - largest <= stage.limit

    done = bisect_left(range(len(steps)), True, key=near)
    running = RunningCost.of(stage, {**start, **dict(steps[:done])})
    _land_evenly(running, steps[done:])
    return running.counts


def _even_steps(stage: Stage) -> list[Step]:
    """Every group's single steps, those first that have lost least after half of them."""
    steps, turns = [], []
    for name in stage.free:
        group = stage.groups.prunable[name]
        for now, then in pairwise(stage.options(name)):
            steps.append((name, then))
            turns.append(1 - (group.channels - (now + then) / 2) / stage.widths.original[name])
    return [steps[number] for number in np.argsort(turns, kind="stable").tolist()]


def _largest_saving(stage: Stage) -> float:
    """What one step of any group saves at most, whatever else is gone."""
    running, largest = RunningCost.of(stage, {}), 0.0
    for name in stage.free:
        # The fewer channels the other groups have, the less a step saves.
        saved = running.saved(name, stage.options(name))
        largest = max([largest, *np.diff(saved).tolist()])
    # A hair more, for rounding.
    return (largest + max(running.jump, 0.0)) * (1 + 1e-9)


def _land_evenly(running: RunningCost, steps: Sequence[Step]) -> None:
    """Take steps in turn until one of the groups' next steps meets the limit, and take that."""
    coming: dict[str, deque[int]] = {}
    for name, count in steps:
        coming.setdefault(name, deque()).append(count)
    names = [name for name in running.counts if name in coming]
    place = {name: number for number, name in enumerate(names)}

    def saved(name: str) -> float:
        return float(running.saved(name, [coming[name][0]])[0]) if coming[name] else -np.inf

    savings = np.array([saved(name) for name in names])
    for name, count in steps:
        if running.met:
            return
        ends = running.cost - savings
        closest = [n for n in np.argsort(-ends, kind="stable").tolist() if ends[n] <= running.reach]
        landings = ((names[n], coming[names[n]][0]) for n in closest)
        if landing := next((step for step in landings if running.meets(*step)), None):
            running.remove(*landing)
            return
        coming[name].popleft()
        for other in running.remove(name, count):
            if other in place:
                savings[place[other]] = saved(other)


TINY_NATS = 1e-4
"""Price of a step that is predicted to cost nothing, so that larger savings still go first."""


@dataclass(frozen=True)
class Spent:
    """A budget that was spent step by step."""

    counts: dict[str, int]
    """Group -> channels that go."""
    reached: dict[str, int]
    """Group -> the highest number of channels whose damage decided anything; 0 for none."""


def allocate_by_damage(
    stage: Stage, curves: Mapping[str, Curve], *, wary: bool = True
) -> dict[str, int]:
    """Channels that every group loses now; see `spend_by_damage`."""
    return spend_by_damage(stage, curves, wary=wary).counts


def spend_by_damage(stage: Stage, curves: Mapping[str, Curve], *, wary: bool = True) -> Spent:
    """Channels that every group loses now, so that the target is met at the least damage.

    Greedy: of all steps up any group's curve, the one with the least damage per
    unit of cost saved is taken, until the target is met; the last is cut short where less will do.
    Of steps with equal prices, the first group's is taken. A step changes the prices only of groups
    that share a layer with it.

    Args:
        stage: The network, its limit, and what is counted.
        curves: The groups' damage by the number of channels that go.
        wary: Whether the curves are predictions, which know little of groups that lost much: the
            price of a step is over the share of the group left, so that none is used up.

    Raises:
        SelectorError: The target cannot be met.
    """
    stage.check_reachable()
    running = RunningCost.of(stage, {**dict.fromkeys(curves, 0), **stage.pinned})
    counts = [*dict.fromkeys([*curves, *stage.pinned])]
    free = {name: curve for name, curve in curves.items() if name in stage.free}
    names = list(free)
    place = {name: number for number, name in enumerate(names)}
    best = [_cheapest(stage, running, name, free[name], wary) for name in names]
    prices = np.array([price for price, _ in best])
    reached = dict.fromkeys(counts, 0)
    while not running.met and np.isfinite(prices).any():
        name = names[int(prices.argmin())]
        count = best[place[name]][1]
        reached[name] = count
        if running.meets(name, count):
            _land(stage, running, name, free)
            break
        for other in running.remove(name, count):
            if other in place:
                best[place[other]] = _cheapest(stage, running, other, free[other], wary)
                prices[place[other]] = best[place[other]][0]
    found = {name: running.counts[name] for name in counts}
    return Spent(found, {name: max(reached[name], n) for name, n in found.items()})


def _cheapest(
    stage: Stage, running: RunningCost, name: str, curve: Curve, wary: bool
) -> tuple[float, int]:
    """The step up a group's curve with the lowest price, and that price.

    The price is the nats for each unit of cost saved; wary, over the share of the group left. The
    selector learnt from unpruned groups and predicts less of the damage the more is gone: a group
    that has lost half its original channels pays twice.
    """
    gone = running.counts[name]
    steps = [n for n in curve if n > gone]
    if not steps:
        return np.inf, gone
    now = max(nats for n, nats in curve.items() if n <= gone)
    nats = np.array([curve[n] for n in steps]) - now + TINY_NATS
    prices = nats / np.maximum(running.saved(name, steps), 1e-12)
    if wary:
        prices /= [1 - stage.widths.lost(stage.groups.prunable[name], n) for n in steps]
    first = int(prices.argmin())
    return float(prices[first]), steps[first]


def _land(stage: Stage, running: RunningCost, name: str, curves: Mapping[str, Curve]) -> None:
    """Let a group lose all that it can short of the limit; then take the step that adds least.

    Args:
        stage: The network.
        running: Its cost; the group's next step meets the limit.
        name: The group.
        curves: Those of the groups that may take the last step.
    """
    steps = [running.counts[name], *(n for n in stage.options(name) if n > running.counts[name])]
    first = next(n for n in running.landings(name, steps) if running.meets(name, n))
    running.remove(name, steps[steps.index(first) - 1])
    landings = []
    for number, (other, curve) in enumerate(curves.items()):
        now, places, heights = running.counts[other], list(curve), list(curve.values())
        steps = [n for n in stage.options(other) if n > now]
        for count in running.landings(other, steps):
            before, after = np.interp([now, count], places, heights).tolist()
            landings.append((after - before, count, number, other))
    chosen = next(one for one in sorted(landings) if running.meets(one[3], one[1]))
    running.remove(chosen[3], chosen[1])


@dataclass(frozen=True)
class Allocated:
    """How many channels every group loses now."""

    counts: Mapping[str, int]
    """Group -> channels that go."""
    text: str = ""
    """How it was settled, as plans and reports name it; empty for even shares."""
    oracle_images: int = 0
    """Images times networks that were evaluated to settle it."""


class Allocation(Protocol):
    """How many channels go from every group, so that a round's limit is met."""

    @property
    def text(self) -> str:
        """As plans and reports name it; empty for even shares."""

    def allocate(self, stage: Stage, trial: Trial, criterion: Criterion) -> Allocated:
        """Channels that every group loses now.

        Args:
            stage: Where the network stands, and how far this round goes.
            trial: The network, and what is known of it.
            criterion: Chooses the channels.

        Raises:
            SelectorError: The target cannot be met.
        """


@dataclass(frozen=True)
class EvenShares:
    """The same share of every group's original channels."""

    text = ""

    def allocate(self, stage: Stage, trial: Trial, criterion: Criterion) -> Allocated:
        """Channels that every group loses now; see `allocate_evenly`."""
        return Allocated(allocate_evenly(stage))


@dataclass(frozen=True)
class LeastDamage:
    """Where the selector predicts the least loss change per unit of cost saved."""

    selector: SaliencySelector
    otherwise: Allocation | None = None
    """What spends the budget where the network is unlike what the selector learnt from; None to
    follow its predictions even so."""

    text = "allocation by damage"

    def allocate(self, stage: Stage, trial: Trial, criterion: Criterion) -> Allocated:
        """Channels that every group loses now; see `allocate_by_damage`."""
        if self.otherwise is not None and trial.survey.unlike:
            return self.otherwise.allocate(stage, trial, criterion)
        options = {name: stage.options(name) for name in stage.free}
        free = {name: trial.survey.views[name] for name in stage.free}
        curves = damage_curves(self.selector, free, options)
        return Allocated(allocate_by_damage(stage, curves), self.text)
