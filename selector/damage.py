"""The budget spent where the predicted loss change per unit saved is least."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from selector.allocation import Stage
from selector.facts import Decision
from selector.selection import SaliencySelector

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
    channels = len(next(iter(decision.scores.values())))
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
