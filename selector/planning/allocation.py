"""How many channels go from every group: even shares, or where the predicted damage is least."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np

from selector.errors import SelectorError
from selector.learning.selector import SaliencySelector
from selector.planning.stage import Stage
from selector.records.decision import Decision


def allocate_evenly(stage: Stage) -> dict[str, int]:
    """Channels that every group loses now; the same share of each group's original width.

    Single steps are taken in the order of the share lost after half of them, so that every group
    has the allowed width that is nearest to the common share; the last step is the one that comes
    closest to the target from below.

    Raises:
        SelectorError: The target cannot be met; the smallest reachable value is named.
    """
    if stage.target.measure == "channels":
        return _even_ratio(stage)
    stage.check_reachable()
    counts = {**dict.fromkeys(stage.groups.prunable, 0), **stage.pinned}
    remaining = {n: stage.options(n)[1:] for n in stage.free if len(stage.options(n)) > 1}
    # No step saves more than it would now, so that single steps need not be looked at before.
    largest = max((_most_saved(stage, n, steps) for n, steps in remaining.items()), default=0.0)
    limit = stage.limit
    while remaining and (cost := stage.cost(counts)) > limit:
        near = {} if cost - largest > limit else remaining
        ends = {n: stage.cost({**counts, n: steps[0]}) for n, steps in near.items()}
        enough = [name for name, value in ends.items() if value <= limit]
        if enough:
            chosen = max(enough, key=ends.__getitem__)
        else:
            turns = {n: _turn(stage, n, counts[n], steps[0]) for n, steps in remaining.items()}
            chosen = min(turns, key=turns.__getitem__)
        counts[chosen] = remaining[chosen].pop(0)
        if not remaining[chosen]:
            del remaining[chosen]
    return counts


def _most_saved(stage: Stage, name: str, steps: list[int]) -> float:
    widest = max(then - now for now, then in pairwise([0, *steps]))
    # A hair more, for rounding.
    return (stage.cost({}) - stage.cost({name: widest})) * (1 + 1e-9)


def _turn(stage: Stage, name: str, now: int, then: int) -> float:
    group = stage.groups.prunable[name]
    return 1 - (group.channels - (now + then) / 2) / stage.widths.original[name]


def _even_ratio(stage: Stage) -> dict[str, int]:
    """The allowed width of every group that is nearest to having lost a share of its channels."""
    widths, groups = stage.widths, stage.groups.prunable
    asked = 1 - stage.target.keep
    if asked > widths.max_ratio:
        raise SelectorError(
            f"ratio={asked:.4g} is more than max_ratio={widths.max_ratio:.4g} lets any group lose; "
            "raise max_ratio, or lower ratio"
        )
    even = {name: widths.nearest_to(groups[name], stage.due(asked)) for name in stage.free}
    counts = {name: {**even, **stage.pinned}[name] for name in groups}
    lost = [widths.lost(groups[name], count) for name, count in counts.items()]
    if stage.share == 1 and not any(lost):
        widest = max(widths.original.values())
        what = f"ratio={asked:.4g}" if asked else f"ratios={dict(widths.ratios)}"
        raise SelectorError(
            f"{what} removes nothing: no group, of {widest} channels at most, has an "
            f"allowed width (round_to={widths.round_to}, min_channels={widths.min_channels}) "
            "nearer to it than its own; raise the ratio"
        )
    return counts


def asked_widths(stage: Stage) -> dict[str, float]:
    """Channels that were to be left of every group of which a ratio was asked, unrounded."""
    asked = dict(stage.widths.ratios)
    if stage.target.measure == "channels" and stage.target.keep < 1:
        asked = dict.fromkeys(stage.widths.original, 1 - stage.target.keep) | asked
    return {
        name: stage.widths.original[name] * (1 - stage.due(ratio)) for name, ratio in asked.items()
    }


LADDER = (0.03, 0.06, 0.12, 0.25, 0.5, 0.75)
"""Shares of a group's channels at which its damage is predicted; then all that may go."""

TINY_NATS = 1e-4
"""Price of a step that is predicted to cost nothing, so that larger savings still go first."""

Curve = Mapping[int, float]
"""Channels removed from a group -> predicted loss change in nats; never less a channel; 0 -> 0."""


def damage_curve(selector: SaliencySelector, decision: Decision, options: list[int]) -> Curve:
    """Predicted loss change of a group at several of its allowed steps, by its trusted metrics.

    No step is cheaper a channel than a smaller one: the channels that a metric would miss least go
    first, and where a larger step is foretold to be a bargain, it is the error that is large.
    """
    channels = decision.view.channels
    wanted = [share * channels for share in LADDER]
    steps = {min(options[1:], key=lambda n: abs(n - w)) for w in wanted} if options[1:] else set()
    curve, dearest = {0: 0.0}, 0.0
    counts = sorted(steps | set(options[-1:]) - {0})
    found = selector.predict_many([replace(decision, count=count) for count in counts])
    for count, prediction in zip(counts, found, strict=True):
        nats = prediction.loss_change_nats[prediction.trusted]
        dearest = max(dearest, nats / count)
        curve[count] = dearest * count
    return curve


def allocate_by_damage(stage: Stage, curves: Mapping[str, Curve]) -> dict[str, int]:
    """Channels that every group loses now, so that the target is met at the least predicted damage.

    Greedy: of all steps up any group's curve, the one with the lowest predicted loss change per
    unit of cost saved is taken, until the target is met; the last is cut short where less will do.

    Raises:
        SelectorError: The target cannot be met.
    """
    stage.check_reachable()
    counts = {**dict.fromkeys(curves, 0), **stage.pinned}
    curves = {name: curve for name, curve in curves.items() if name in stage.free}
    while (cost := stage.cost(counts)) > stage.limit:
        steps = _steps(counts, curves)
        prices = {step: _price(stage, counts, cost, step, curves) for step in steps}
        name, count = min(prices, key=prices.__getitem__)
        if stage.cost({**counts, name: count}) <= stage.limit:
            short = [n for n in stage.options(name) if counts[name] <= n < count]
            counts[name] = max(n for n in short if stage.cost({**counts, name: n}) > stage.limit)
            return _landed(stage, counts, curves)
        counts[name] = count
    return counts


def _landed(stage: Stage, counts: dict[str, int], curves: Mapping[str, Curve]) -> dict[str, int]:
    """The counts with the one more step that meets the target at the least predicted damage."""
    landings: dict[str, tuple[float, int]] = {}
    for name, curve in curves.items():
        steps = [n for n in stage.options(name) if n > counts[name]]
        enough = (n for n in steps if stage.cost({**counts, name: n}) <= stage.limit)
        if count := next(enough, None):
            landings[name] = (_nats(curve, count) - _nats(curve, counts[name]), count)
    chosen = min(landings, key=landings.__getitem__)
    return {**counts, chosen: landings[chosen][1]}


def _nats(curve: Curve, count: int) -> float:
    return float(np.interp(count, list(curve), list(curve.values())))


def _steps(counts: Mapping[str, int], curves: Mapping[str, Curve]) -> list[tuple[str, int]]:
    return [(name, n) for name, curve in curves.items() for n in curve if n > counts[name]]


def _price(
    stage: Stage,
    counts: Mapping[str, int],
    cost: float,
    step: tuple[str, int],
    curves: Mapping[str, Curve],
) -> float:
    """Predicted nats for each unit of cost that a step saves, over the share of the group left.

    The selector learnt from unpruned groups and foresees less of the damage the more is gone: a
    group that has lost half its original channels pays twice, so that none is eaten up.
    """
    name, count = step
    curve = curves[name]
    now = max(value for n, value in curve.items() if n <= counts[name])
    saved = cost - stage.cost({**counts, name: count})
    group = stage.groups.prunable[name]
    left = 1 - stage.widths.lost(group, count)
    return (curve[count] - now + TINY_NATS) / max(saved, 1e-12) / left


class Allocation(Protocol):
    """How many channels go from every group, so that a round's limit is met."""

    @property
    def text(self) -> str:
        """As plans and reports name it; empty for even shares."""

    def counts(self, stage: Stage, views: Mapping[str, Decision]) -> dict[str, int]:
        """Channels that every group loses now.

        Args:
            stage: Where the network stands, and how far this round goes.
            views: Its groups as the selector sees them.

        Raises:
            SelectorError: The target cannot be met.
        """


@dataclass(frozen=True)
class EvenShares:
    """The same share of every group's original channels."""

    text = ""

    def counts(self, stage: Stage, views: Mapping[str, Decision]) -> dict[str, int]:
        """Channels that every group loses now; see `allocate_evenly`."""
        return allocate_evenly(stage)


@dataclass(frozen=True)
class LeastDamage:
    """Where the selector predicts the least loss change per unit of cost saved."""

    selector: SaliencySelector

    text = "allocation by damage"

    def counts(self, stage: Stage, views: Mapping[str, Decision]) -> dict[str, int]:
        """Channels that every group loses now; see `allocate_by_damage`."""
        curves = {
            name: damage_curve(self.selector, views[name], stage.options(name))
            for name in stage.free
        }
        return allocate_by_damage(stage, curves)
