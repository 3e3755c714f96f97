"""Features of a group are derived once for each state, and a view never shares what is derived."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selector.learning.features import (
    Opinions,
    candidates,
    describe,
    feature_names,
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
    network = small("flatten", 12, norm=True)
    result = prune(network, data(), keep_macs=0.5, rounds=7, allocation="damage")
    assert len(result.rounds) == 7
    # Two groups in seven rounds.
    assert len(seen) == len(set(seen)) == 2 * 7


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


@given(
    table=st.lists(
        st.lists(st.integers(0, 3).map(float), min_size=6, max_size=6), min_size=2, max_size=4
    )
)
def test_agreement_is_spearmans_with_averaged_ties(table: list[list[float]]) -> None:
    names = [f"metric{number}" for number in range(len(table))]
    scores = {name: np.array(row) for name, row in zip(names, table, strict=True)}
    agreement = Opinions.of(scores, [*names, "missing"]).agreement
    assert np.isnan(agreement[-1]).all()
    for i, one in enumerate(table):
        for j, other in enumerate(table):
            # Pearson's correlation of ranks, each the mean of the places that equal values take.
            ranks = [
                [sum(v < x for v in row) + (sum(v == x for v in row) + 1) / 2 for x in row]
                for row in (one, other)
            ]
            constant = len(set(one)) == 1 or len(set(other)) == 1
            expected = 0.0 if constant else float(np.corrcoef(ranks)[0, 1])
            assert agreement[i, j] == pytest.approx(expected, abs=1e-12)


def test_a_constant_metric_agrees_with_nothing_whatever_the_order_of_channels() -> None:
    _, decision, _ = next(lawful(["a"], 0).decisions())
    rising = np.arange(16.0)
    view = replace(decision.view, scores={"l1": rising, "taylor": -rising, "fpgm": np.ones(16)})
    agreement = opinions_of(view, METRICS).agreement
    place = {name: number for number, name in enumerate(METRICS)}
    assert agreement[place["fpgm"]].tolist() == [0.0, 0.0, 0.0]
    assert agreement[place["l1"], place["taylor"]] == pytest.approx(-1)


def test_arms_with_the_same_proposal_have_the_same_rank() -> None:
    _, decision, _ = next(lawful(["a"], 0).decisions())
    same = decision.scores["l1"]
    scores = {"l1": same, "taylor": 2 * same, "fpgm": decision.scores["fpgm"]}
    asked = Decision(replace(decision.view, scores=scores), 4)
    ranks = dict.fromkeys(METRICS, 0.0)
    for order in (METRICS, METRICS[::-1]):
        rows = describe(asked, candidates(asked, order), METRICS)
        column = feature_names(METRICS).index("rank_of_excess")
        ranks = dict(zip(order, rows[:, column].tolist(), strict=True))
        assert ranks["l1"] == ranks["taylor"] == 0.25
        assert ranks["fpgm"] == 1
