"""Slow twins of the budget: every price computes the whole network's cost, as first written."""

from collections.abc import Mapping

import numpy as np

from selector.learning.damage_curve import Curve
from selector.planning.allocation import TINY_NATS
from selector.planning.stage import Stage


def slow_evenly(stage: Stage) -> dict[str, int]:
    """The same share of every group: single steps in turn, and the one that lands closest."""
    counts = {**dict.fromkeys(stage.groups.prunable, 0), **stage.pinned}
    remaining = {name: stage.options(name)[1:] for name in stage.free}
    while any(remaining.values()) and stage.cost(counts) > stage.limit:
        steps = {name: some[0] for name, some in remaining.items() if some}
        ends = {name: stage.cost({**counts, name: count}) for name, count in steps.items()}
        enough = [name for name, cost in ends.items() if cost <= stage.limit]
        if enough:
            chosen = max(enough, key=ends.__getitem__)
        else:
            chosen = min(steps, key=lambda name: _turn(stage, name, counts[name], steps[name]))
        counts[chosen] = remaining[chosen].pop(0)
    return counts


def _turn(stage: Stage, name: str, now: int, then: int) -> float:
    width = stage.groups.prunable[name].channels - (now + then) / 2
    return 1 - width / stage.widths.original[name]


def slow_by_damage(
    stage: Stage, curves: Mapping[str, Curve], *, wary: bool = True
) -> dict[str, int]:
    """The cheapest step of all, again and again; then the landing that adds the least damage."""
    counts = {**dict.fromkeys(curves, 0), **stage.pinned}
    free = {name: curve for name, curve in curves.items() if name in stage.free}
    while stage.cost(counts) > stage.limit:
        steps = [(name, n) for name, curve in free.items() for n in curve if n > counts[name]]
        name, count = min(steps, key=lambda step: _price(stage, counts, step, free[step[0]], wary))
        if stage.cost({**counts, name: count}) <= stage.limit:
            short = [n for n in stage.options(name) if counts[name] <= n < count]
            counts[name] = max(n for n in short if stage.cost({**counts, name: n}) > stage.limit)
            return _landed(stage, counts, free)
        counts[name] = count
    return counts


def _price(
    stage: Stage, counts: Mapping[str, int], step: tuple[str, int], curve: Curve, wary: bool
) -> float:
    name, count = step
    now = max(value for n, value in curve.items() if n <= counts[name])
    saved = stage.cost(counts) - stage.cost({**counts, name: count})
    left = 1 - stage.widths.lost(stage.groups.prunable[name], count) if wary else 1
    return (curve[count] - now + TINY_NATS) / max(saved, 1e-12) / left


def _landed(stage: Stage, counts: dict[str, int], curves: Mapping[str, Curve]) -> dict[str, int]:
    landings: dict[str, tuple[float, int]] = {}
    for name, curve in curves.items():
        for count in stage.options(name):
            enough = stage.cost({**counts, name: count}) <= stage.limit
            if count > counts[name] and enough and name not in landings:
                before, after = np.interp([counts[name], count], list(curve), list(curve.values()))
                landings[name] = (float(after - before), count)
    chosen = min(landings, key=landings.__getitem__)
    return {**counts, chosen: landings[chosen][1]}
