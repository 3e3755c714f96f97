"""Laws of the budget: targets are met, limits hold, and what is predicted to hurt is spared."""

from collections.abc import Mapping
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.errors import SelectorError
from selector.learning.damage_curve import damage_curve
from selector.learning.selector import SaliencySelector
from selector.learning.uncertainty import TrainingDistribution
from selector.network.tracing import Groups, find_groups
from selector.planning.allocation import (
    EvenShares,
    LeastDamage,
    allocate_by_damage,
    allocate_evenly,
)
from selector.planning.choose import choose
from selector.planning.limits import Widths
from selector.planning.method import AllocationName, method_of
from selector.planning.stage import Stage
from selector.planning.target import Target, Targets
from selector.records.decision import Decision, GroupView
from selector.typing import Matrix
from tests.networks import data, small

KINDS = ("plain", "residual", "flatten", "grouped")


def stage_of(kind: str, width: int, keep: float, **limits: float) -> Stage:
    groups = find_groups(small(kind, width), data()[0][0])
    widths = Widths.of(
        groups.prunable, limits.get("max_ratio", 0.9), int(limits.get("round_to", 1))
    )
    return Stage(groups, widths, Target.of({"keep_macs": keep}), 1.0, groups.costs)


def straight(groups: Groups, nats_per_channel: Mapping[str, float]) -> dict[str, dict[int, float]]:
    return {
        name: {n: n * nats_per_channel[name] for n in range(int(0.9 * group.channels) + 1)}
        for name, group in groups.prunable.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(
    width=st.integers(6, 12),
    keep=st.floats(0.4, 0.95),
    prices=st.lists(st.floats(0.001, 1), min_size=8, max_size=8),
)
def test_the_target_is_met_and_no_step_was_needless(
    kind: str, width: int, keep: float, prices: list[float]
) -> None:
    stage = stage_of(kind, width, keep)
    curves = straight(stage.groups, dict(zip(stage.groups.prunable, prices, strict=False)))
    for counts in (allocate_evenly(stage), allocate_by_damage(stage, curves)):
        assert stage.cost(counts) <= stage.limit
        assert all(counts[name] in stage.options(name) for name in counts)
        spare = {
            name: stage.cost({**counts, name: max(n for n in stage.options(name) if n < count)})
            for name, count in counts.items()
            if count
        }
        assert any(cost > stage.limit for cost in spare.values())


def test_the_fragile_group_is_spared() -> None:
    stage = stage_of("plain", 10, 0.7)
    first, second = stage.groups.prunable
    for fragile, tough in ((first, second), (second, first)):
        counts = allocate_by_damage(stage, straight(stage.groups, {fragile: 1.0, tough: 1e-6}))
        even = allocate_evenly(stage)
        assert counts[fragile] < even[fragile]
        assert counts[tough] > even[tough]


def test_the_last_step_goes_where_it_costs_least() -> None:
    # One channel of either group is more than is asked: the nearer landing is no reason.
    stage = stage_of("plain", 10, 0.995)
    first, second = stage.groups.prunable
    for fragile, tough in ((first, second), (second, first)):
        prices = {fragile: 1.0, tough: 1e-6}
        assert allocate_by_damage(stage, straight(stage.groups, prices)) == {fragile: 0, tough: 1}


@given(nats=st.lists(st.floats(-0.01, 5), min_size=6, max_size=6))
def test_no_step_is_cheaper_a_channel_than_a_smaller_one(nats: list[float]) -> None:
    view = GroupView(facts={}, context={}, scores={"l1": np.ones(40)})  # type: ignore[arg-type]
    said = [SimpleNamespace(trusted="l1", loss_change_nats={"l1": value}) for value in nats]
    asked: list[int] = []

    def predict_many(decisions: list[Decision]) -> list[SimpleNamespace]:
        asked.extend(found.count for found in decisions)
        return said

    selector = SimpleNamespace(predict_many=predict_many)
    curve = damage_curve(selector, view, list(range(31)))  # type: ignore[arg-type]
    rates = [curve[count] / count for count in asked]
    assert list(curve) == [0, *asked]
    assert all(later >= rate * (1 - 1e-12) for rate, later in pairwise(rates))
    for count, value in zip(asked, nats, strict=True):
        assert curve[count] >= value - 1e-12
    assert max(rates) == pytest.approx(max(0.0, *(v / n for v, n in zip(nats, asked, strict=True))))


def test_limits_hold_by_damage_too() -> None:
    stage = stage_of("plain", 12, 0.6, max_ratio=0.5, round_to=2)
    first, second = stage.groups.prunable
    curves = {
        name: {n: n * price for n in stage.options(name)}
        for name, price in ((first, 1.0), (second, 1e-6))
    }
    counts = allocate_by_damage(stage, curves)
    left = {n: stage.groups.prunable[n].channels - c for n, c in counts.items()}
    assert all(width % 2 == 0 and width >= 6 for width in left.values())


def test_what_cannot_be_met_says_how_far_one_gets() -> None:
    stage = stage_of("plain", 10, 0.1, max_ratio=0.3)
    for allocate in (allocate_evenly, lambda s: allocate_by_damage(s, {})):
        with pytest.raises(SelectorError, match=r"keeping 10.0% of the macs cannot be met.*allow"):
            allocate(stage)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (
            {"allocation": "greedy", "keep_macs": 0.5},
            "unknown allocation 'greedy'; known: auto, even",
        ),
    ],
)
def test_allocations_that_are_none(options: dict[str, object], culprit: str) -> None:
    with pytest.raises(SelectorError, match=culprit):
        choose(small("plain"), data(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("criterion", "target", "settled"),
    [
        ("selector", {"keep_macs": 0.5}, "damage"),
        ("selector", {"keep_latency": 0.5}, "damage"),
        ("selector", {"ratio": 0.5}, "even"),
        ("l1", {"keep_macs": 0.5}, "even"),
        ("oracle", {"keep_weights": 0.5}, "even"),
    ],
)
def test_a_budget_goes_where_damage_is_predicted(
    criterion: str, target: Targets, settled: str
) -> None:
    found = method_of(criterion, Target.of(target), selector=SaliencySelector.shipped())
    assert isinstance(found.allocation, {"damage": LeastDamage, "even": EvenShares}[settled])


class Far(TrainingDistribution):
    """Some decisions, in turn, are unlike all that was learnt from."""

    share = 1.0

    def distance(self, facts: Matrix) -> Matrix:
        far: Matrix = np.where(np.arange(len(facts)) < self.share * len(facts), 2.0, 0.5)
        return far


@pytest.mark.parametrize(
    ("share", "allocation", "settled"),
    [
        (0.0, "auto", "predicted"),
        (0.4, "auto", "predicted"),
        (0.6, "auto", "measured"),
        (1.0, "auto", "measured"),
        (1.0, "damage", "predicted"),
    ],
)
def test_widths_are_measured_where_most_decisions_are_unlike_what_was_learnt(
    share: float, allocation: AllocationName, settled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = SaliencySelector.shipped()
    known = asked.training_distribution
    asked.training_distribution = Far(known.mean, known.spread, known.centres, known.radius)
    monkeypatch.setattr(Far, "share", share)
    model, batches = small("plain", 12, norm=True), data(64, 16)
    plan = choose(model, batches, keep_macs=0.6, selector=asked, allocation=allocation)
    assert ("measured damage" in plan.criterion) == (settled == "measured")
    assert (plan.oracle_images > 0) == (settled == "measured")
    other: AllocationName = "measured" if settled == "measured" else "damage"
    same = choose(model, batches, keep_macs=0.6, selector=asked, allocation=other)
    assert plan.removals == same.removals


@pytest.mark.parametrize("allocation", ["damage", "measured"])
def test_a_ratio_is_even(allocation: AllocationName) -> None:
    with pytest.raises(SelectorError, match="ratio takes the same share of every group"):
        method_of("selector", Target.of({"ratio": 0.5}), allocation=allocation)


@pytest.mark.parametrize("criterion", ["l1", "taylor", "reconstruction"])
def test_any_criterion_can_have_the_widths_that_the_selector_prices(criterion: str) -> None:
    model, batches = small("plain", 12, norm=True), data(64, 16)
    ours = choose(model, batches, keep_macs=0.6, allocation="damage")
    theirs = choose(model, batches, keep_macs=0.6, criterion=criterion, allocation="damage")
    widths = [
        {choice.group: len(choice.remove) for choice in plan.choices} for plan in (ours, theirs)
    ]
    assert widths[0] == widths[1]
    assert {choice.metric for choice in theirs.choices} == {criterion}
    even = choose(model, batches, keep_macs=0.6, criterion=criterion)
    assert "allocation by damage" in theirs.criterion
    assert "allocation by damage" not in even.criterion
