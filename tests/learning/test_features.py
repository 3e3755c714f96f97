"""Features of a group are derived once for each state, and a view never shares what is derived."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from selector.learning.features import (
    Opinions,
    candidates,
    describe,
    opinions_of,
    removal_order,
)
from selector.pruning.prune import prune
from selector.records.decision import Decision, GroupView
from selector.typing import Matrix
from tests.made_records import METRICS, lawful
from tests.networks import data, small


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is derived of scores from now on, in order."""
    found: list[str] = []
    of, argsort = Opinions.of, np.argsort

    def opinions(scores: Mapping[str, Matrix], metrics: Sequence[str]) -> Opinions:
        found.append("opinions")
        return of(scores, metrics)

    def sort(values: Matrix, *args: object, **options: object) -> object:
        found.append("order")
        return argsort(values, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Opinions, "of", opinions)
    monkeypatch.setattr("selector.learning.features.np.argsort", sort)
    return found


def test_each_state_of_a_group_is_derived_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, object]] = []
    of = Opinions.of
    keep: list[object] = []

    def opinions(scores: Mapping[str, Matrix], metrics: Sequence[str]) -> Opinions:
        keep.append(scores)
        seen.append((id(scores), tuple(metrics)))
        return of(scores, metrics)

    monkeypatch.setattr(Opinions, "of", opinions)
    result = prune(small("flatten", 12), data(), keep_macs=0.5)
    assert len(result.rounds) == 7
    # Two groups in seven rounds, and the two states that the forecast reaches on paper.
    assert len(seen) == len(set(seen)) == 2 * (7 + 2)


def test_orders_are_sorted_once_for_all_steps(counted: list[str]) -> None:
    _, decision, _ = next(lawful(["a"], 0).decisions())
    view = replace(decision.view)
    for count in (1, 3, 8):
        candidates(Decision(view, count), METRICS)
        candidates(Decision(view, count), METRICS[:1])
    assert counted == ["order"] * len(METRICS)
    assert removal_order(view, "l1") is removal_order(view, "l1")
    assert opinions_of(view, METRICS) is opinions_of(view, METRICS)
    assert counted.count("opinions") == 1


def test_other_metrics_and_other_scores_are_derived_again() -> None:
    _, decision, _ = next(lawful(["a"], 0).decisions())
    view = decision.view
    all_three, two = opinions_of(view, METRICS), opinions_of(view, METRICS[:2])
    assert len(all_three.parts) == 3
    assert len(two.parts) == 2
    turned = replace(view, scores={name: -values for name, values in view.scores.items()})
    assert removal_order(turned, "l1").tolist() == removal_order(view, "l1")[::-1].tolist()


def test_decisions_of_one_group_share_its_view() -> None:
    views: dict[str, GroupView] = {}
    for group, decision, _ in lawful(["a"], 0).decisions():
        assert decision.view is views.setdefault(group.group, decision.view)
        fresh = Decision(replace(decision.view), decision.count)
        proposals = candidates(decision, METRICS)
        np.testing.assert_array_equal(
            describe(decision, proposals, METRICS), describe(fresh, proposals, METRICS)
        )
