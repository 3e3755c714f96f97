"""Widths: the nearest that is allowed, floors, and what is asked of single groups by name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.errors import SelectorError
from selector.network.tracing import find_groups
from selector.planning.choose import choose
from selector.planning.limits import Widths
from selector.planning.plan import Plan
from selector.pruning.prune import prune
from tests.networks import data, small

MODEL = small("plain", 15)
GROUPS = find_groups(MODEL, data()[0][0]).prunable
SETTINGS = settings(max_examples=30, deadline=None)


@SETTINGS
@given(
    ratio=st.floats(0.01, 0.99),
    max_ratio=st.floats(0.05, 0.95),
    round_to=st.integers(1, 9),
    least=st.integers(1, 16),
)
def test_no_allowed_width_is_nearer(
    ratio: float, max_ratio: float, round_to: int, least: int
) -> None:
    widths = Widths.of(GROUPS, max_ratio, round_to, min_channels=least)
    for group in GROUPS.values():
        allowed = [
            width
            for width in range(1, group.channels)
            if width % round_to == 0 and width >= least
            if group.channels - width <= max_ratio * group.channels + 1e-9
        ]
        left = group.channels - widths.nearest_to(group, ratio)
        assert left in [group.channels, *allowed]
        asked = (1 - ratio) * group.channels
        assert abs(left - asked) <= min(abs(w - asked) for w in [group.channels, *allowed]) + 1e-9


@pytest.mark.parametrize(("ratio", "left"), [(0.3, 8), (0.6, 8), (0.2, 15)])
def test_round_to_is_the_nearest_and_says_so(ratio: float, left: int) -> None:
    """Rounding down would leave 8, 0 (so all 15) and 8 of 15."""
    if left == 15:
        with pytest.raises(SelectorError, match="nearer to it than its own; raise the ratio"):
            choose(MODEL, data(), criterion="l1", ratio=ratio, round_to=8, ignore=["next"])
        return
    plan = choose(MODEL, data(), criterion="l1", ratio=ratio, round_to=8, ignore=["next"])
    (choice,) = plan.choices
    assert choice.channels - len(choice.remove) == left
    assert choice.asked == pytest.approx(15 * (1 - ratio))
    assert f"{15 * (1 - ratio):.1f}" in str(plan)
    assert plan.goal is not None
    assert plan.goal.asked == pytest.approx(ratio)
    assert plan.goal.got == pytest.approx(7 / 15)
    assert Plan.from_json(plan.to_json()) == plan


def test_a_group_that_keeps_all_is_a_warning() -> None:
    result = prune(MODEL, data(), criterion="l1", ratio=0.1, max_ratios={"next": 0.05}, rounds=2)
    assert "next" not in result.plan.removals
    (warning,) = (text for text in result.report.warnings if "images" not in text)
    assert "next keeps all its 16 channels: 14.4 were asked" in warning
    assert warning in str(result.report)


@pytest.mark.parametrize("rounds", [1, 3])
def test_single_groups_get_what_is_asked_of_them(rounds: int) -> None:
    for target in ({"ratio": 0.2}, {"keep_macs": 0.6}, {}):
        result = prune(
            MODEL,
            data(),
            criterion="l1",
            ratios={"stem": 0.6},
            rounds=rounds,
            **target,  # type: ignore[arg-type]
        )
        assert len(result.plan.removals["stem"]) == 9
        others = result.plan.removals.get("next", ())
        assert result.report.goal is not None
        if target == {}:
            assert others == ()
            assert result.report.goal.target == "ratios"
        elif "ratio" in target:
            assert len(others) == 3
        else:
            assert result.report.macs[1] <= 0.6 * result.report.macs[0]
            assert result.report.goal.got <= 0.6


def test_a_producers_name_stands_for_its_group() -> None:
    model = small("residual", 10)
    plan = choose(model, data(), criterion="l1", ratios={"back": 0.3})
    assert {name: len(gone) for name, gone in plan.removals.items()} == {"stem": 3}


@pytest.mark.parametrize("allocation", ["even", "damage"])
def test_floors_hold_whatever_the_budget(allocation: str) -> None:
    plan = choose(
        MODEL,
        data(),
        allocation=allocation,  # type: ignore[arg-type]
        criterion="l1" if allocation == "even" else "selector",
        keep_macs=0.55,
        min_channels=7,
        max_ratios={"next": 0.25},
    )
    left = {c.group: c.channels - len(c.remove) for c in plan.choices}
    assert left["stem"] >= 7
    assert left.get("next", 16) >= 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": {"stam": 0.3}}, r"ratios names 'stam', which is no group; did you mean stem\?"),
        ({"max_ratios": {"nxt": 0.3}, "ratio": 0.2}, r"max_ratios names 'nxt'.*mean next\?"),
        ({"ignore": ["stm"], "ratio": 0.2}, r"ignore names 'stm'.*mean stem\?.*known: stem, next"),
        ({"ratios": {"head": 0.3}}, r"ratios names 'head', which is not pruned: no layer reads it"),
        ({"ratios": {"stem": 1.3}}, r"ratios\['stem'\]=1.3 must be a share between 0 and 1"),
        ({"ratios": {"stem": 0.6}, "max_ratio": 0.5}, r"'stem' lose 0.6 .* max_ratio=0.5"),
        ({"ratios": {"stem": 0.6}, "max_ratios": {"stem": 0.5}}, "lower the one, or raise the"),
        ({"ratio": 0.2, "min_channels": 0}, "min_channels=0 must be a whole number, 1 or more"),
        ({"ignore": "stem", "ratio": 0.2}, r"must be names in a list: ignore=\['stem'\]"),
        ({"keep_mac": 0.5}, r"unknown target 'keep_mac'; did you mean keep_macs"),
        (
            {"keep_macs": 0.2, "min_channels": 12},
            r"keeping 20.0% of the macs cannot be met: the prunable groups allow \d\d.\d% at",
        ),
        (
            {"keep_macs": 0.3, "ratios": {"stem": 0.1, "next": 0.1}},
            r"keeping 30.0% of the macs cannot be met.*allow 8\d.\d% at",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SelectorError, match=message):
        choose(MODEL, data(), criterion="l1", **options)  # type: ignore[arg-type]


def test_two_shares_for_one_group() -> None:
    with pytest.raises(SelectorError, match=r"gives group 'stem' both 0\.3 and 0\.4"):
        choose(small("residual", 10), data(), criterion="l1", ratios={"stem": 0.3, "back": 0.4})
