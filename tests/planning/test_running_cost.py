"""Costs updated group by group are the whole network's, and so are the allocations made by them."""

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from selector.learning.damage_curve import Curve
from selector.network.costs import Costs, LayerCost
from selector.network.groups import Group, Slice
from selector.network.latency import Clock, LatencyTable
from selector.network.tracing import Groups
from selector.planning.allocation import (
    allocate_by_damage,
    allocate_evenly,
)
from selector.planning.limits import Widths
from selector.planning.running_cost import RunningCost
from selector.planning.stage import Stage
from selector.planning.target import Target
from tests.reference_allocation import slow_by_damage, slow_evenly

MEASURES = ("keep_macs", "keep_params", "keep_weights", "keep_latency")
Chance = np.random.Generator


def made_stage(count: int, seed: int, target: str = "keep_macs", **limits: Any) -> Stage:
    """A chain of made-up layers; some groups are read twice, joined, or pass a depthwise layer."""
    chance = np.random.default_rng(seed)
    layers: dict[str, LayerCost] = {}
    slices: dict[str, list[Slice]] = {}
    widths = chance.integers(3, limits.pop("widest", 14), count)
    open_inputs: list[tuple[str, int, int]] = [("", 3, 1)]
    for number, width in enumerate(widths.tolist()):
        name = f"layer{number}"
        slices[name] = [_slice(name, "out", width)]
        inputs = _read(name, open_inputs, slices)
        layers[name] = _layer(chance, width, inputs)
        if chance.random() < 0.3:
            slices[name].append(_slice(f"{name}.norm", "both", width))
            layers[f"{name}.norm"] = _layer(chance, width, width, channel_wise=True)
        positions = int(chance.integers(1, 4)) if chance.random() < 0.2 else 1
        joined = open_inputs[-1:] if chance.random() < 0.3 else []
        open_inputs = [*joined, (name, width, positions)]
    layers["head"] = _layer(chance, 10, _read("head", open_inputs, slices))
    groups = {
        name: Group(name, width, tuple(slices[name]), 1.0, 1.0)
        for name, width in zip(slices, widths.tolist(), strict=True)
    }
    costs = Costs(layers, int(chance.integers(0, 50)))
    keep, share = limits.pop("keep", float(chance.uniform(0.3, 0.95))), limits.pop("share", 1.0)
    chosen = Widths.of(groups, limits.pop("max_ratio", 0.9), **{"round_to": 1, **limits})
    clock = _clock(chance, groups) if target == "keep_latency" else None
    return Stage(Groups(groups, {}, costs), chosen, _target(target, keep), share, costs, clock)


def _target(name: str, keep: float) -> Target:
    return Target.of({name: keep})  # type: ignore[misc]


def _slice(layer: str, side: Any, channels: int, positions: int = 1, first: int = 0) -> Slice:
    found = [channel for channel in range(channels) for _ in range(positions)]
    return Slice(layer, side, tuple(range(first, first + len(found))), tuple(found))


def _read(
    name: str, open_inputs: list[tuple[str, int, int]], slices: dict[str, list[Slice]]
) -> int:
    """Let a layer read everything that is open; the number of its inputs."""
    first = 0
    for source, width, positions in open_inputs:
        if source:
            slices[source].append(_slice(name, "in", width, positions, first))
        first += width * positions
    return first


def _layer(chance: Chance, outputs: int, inputs: int, channel_wise: bool = False) -> LayerCost:
    weights = int(chance.integers(1, 10)) * outputs * (1 if channel_wise else inputs)
    return LayerCost(
        macs=float(weights * chance.uniform(1, 100)),
        weights=weights,
        extras=int(chance.integers(0, 3)) * outputs,
        outputs=outputs,
        inputs=inputs,
        channel_wise=channel_wise,
        convolution=bool(chance.random() < 0.9),
    )


def _clock(chance: Chance, groups: dict[str, Group]) -> Clock:
    names = dict.fromkeys(part.layer for group in groups.values() for part in group.slices)
    factors = {}
    for name, group in groups.items():
        factors[name] = {
            part.layer: ((0.0, 0.5, 0.95), (1.0, *np.sort(chance.random(2))[::-1].tolist()))
            for part in group.slices
        }
    table = LatencyTable(
        {name: float(chance.uniform(0.5, 2)) for name in names},
        factors,
        {name: group.channels for name, group in groups.items()},
        float(chance.uniform()),
    )
    return Clock(table, None, None, float(chance.uniform(0.7, 1.3)))  # type: ignore[arg-type]


def curves_of(stage: Stage, seed: int) -> dict[str, Curve]:
    """Rising damage at some of the steps of every group."""
    chance = np.random.default_rng(seed + 1)
    found: dict[str, Curve] = {}
    for name in stage.free:
        options = stage.options(name)
        some = sorted({*chance.choice(options, 4).tolist(), options[-1]} - {0})
        rates = np.cumsum(chance.uniform(0, 1, len(some)))
        found[name] = {
            0: 0.0,
            **{n: float(n * r) for n, r in zip(some, rates.tolist(), strict=True)},
        }
    return found


@pytest.mark.parametrize("target", MEASURES)
@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_a_running_cost_is_the_whole_networks(target: str, count: int, seed: int) -> None:
    stage = made_stage(count, seed, target)
    chance = np.random.default_rng(seed)
    running = RunningCost.of(stage, {})
    steps = {name: stage.options(name) for name in stage.free}
    for _ in range(3 * count):
        name = stage.free[int(chance.integers(count))]
        step = int(chance.choice(steps[name]))
        steps[name] = [n for n in steps[name] if n >= step]
        before = {n: running.saved(n, some) for n, some in steps.items()}
        touched = running.remove(name, step)
        assert running.cost == pytest.approx(stage.cost(running.counts), rel=1e-9)
        for other, some in steps.items():
            expected = [stage.cost({**running.counts, other: n}) for n in some]
            np.testing.assert_allclose(running.after(other, some), expected, rtol=1e-9)
            # A group that is not named has kept what its steps save.
            if other not in touched:
                np.testing.assert_allclose(
                    running.saved(other, some), before[other], rtol=1e-9, atol=1e-9 * running.cost
                )


@pytest.mark.parametrize("target", MEASURES)
@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 8),
    seed=st.integers(0, 10**6),
    share=st.sampled_from([0.3, 1.0]),
    round_to=st.sampled_from([1, 2]),
    pinned=st.booleans(),
    wary=st.booleans(),
)
def test_allocations_are_those_of_the_slow_twins(
    target: str, count: int, seed: int, share: float, round_to: int, pinned: bool, wary: bool
) -> None:
    ratios = {"layer0": 0.4} if pinned and count > 1 else {}
    stage = made_stage(count, seed, target, share=share, round_to=round_to, ratios=ratios)
    curves = curves_of(stage, seed)
    last = dataclasses.replace(stage, share=1.0)
    least = last.cost({**{n: stage.options(n)[-1] for n in stage.free}, **last.pinned})
    keep = max(stage.target.keep, 1.02 * least / stage.start_cost)
    assume(keep < 1)
    stage = dataclasses.replace(stage, target=_target(target, keep))
    assert allocate_evenly(stage) == slow_evenly(stage)
    found = allocate_by_damage(stage, curves, wary=wary)
    expected = slow_by_damage(stage, curves, wary=wary)
    assert found == expected
    assert list(found) == list(expected)
    assert stage.cost(found) <= stage.limit


def test_a_thousand_groups_take_two_seconds() -> None:
    stage = made_stage(1000, 0, keep=0.5, widest=65)
    curves = curves_of(stage, 0)
    begin = time.process_time()
    counts = allocate_by_damage(stage, curves)
    by_damage = time.process_time() - begin
    even = allocate_evenly(stage)
    both = time.process_time() - begin
    assert stage.cost(counts) <= stage.limit >= stage.cost(even)
    # A fraction of a second each on one core; the slow twin takes hours.
    assert by_damage < 2
    assert both < 4
