"""The evaluation protocol: what is left out, what choices cost, and the gap that they close."""

from dataclasses import replace
from itertools import combinations
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.errors import SelectorError
from selector.learning.evaluation import SBS_NATS, SBS_REGRET, SELECTOR, VBS, Grid, Judged
from selector.learning.regret import regrets
from selector.learning.selector import SaliencySelector
from selector.records.provenance import Provenance
from selector.records.records import Records
from tests.made_records import METRICS, lawful, made
from training.evaluation.baselines import best_arms, capped_regrets, greedy_portfolio
from training.evaluation.protocol import evaluated, table_of
from training.evaluation.splits import SplitName, folds_of
from training.evaluation.weights import weights_of


def zoo() -> Records:
    """Four families on two data sets, two networks each."""
    found = Records((), (), ())
    for number, family in enumerate("abcd"):
        for other, dataset in enumerate(("x", "y")):
            names = [f"{family}{dataset}{n}" for n in range(2)]
            found = found + lawful(names, 10 * number + other, 4, family, dataset)
    return found


@pytest.mark.parametrize("split", ["family", "dataset", "both"])
def test_folds_part_what_they_say(split: SplitName) -> None:
    records = zoo()
    about: dict[str, Provenance] = {p.network: p for p in records.networks}
    folds = folds_of(records.networks, split)
    assert sorted(n for fold in folds for n in fold.test) == sorted(about)
    for fold in folds:
        for one in fold.test:
            for other in fold.train:
                if split != "dataset":
                    assert about[one].family != about[other].family
                if split != "family":
                    assert about[one].dataset != about[other].dataset


def test_a_single_family_cannot_be_left_out() -> None:
    with pytest.raises(SelectorError, match=r"leaves 0 networks to learn from; record networks"):
        folds_of(lawful(["a", "b"], 0).networks, "family")


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 50))
def test_a_grid_knows_the_regrets_of_single_decisions(seed: int) -> None:
    records = made(["a", "b"], seed=seed)
    grid = Grid.of(table_of(records))
    for row, (_, _, rows) in zip(regrets(grid.both), records.decisions(), strict=True):
        nats = [one.nats for one in rows]
        spread = median(nats) - min(nats) + 0.002
        expected = [(value - min(nats)) / spread for value in nats]
        for number, arm in enumerate(table_of(records).arms):
            (place,) = [i for i, one in enumerate(rows) if one.arm == arm]
            assert row[number] == pytest.approx(expected[place])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 50))
def test_what_is_measured_is_the_best_on_the_selection_split(seed: int) -> None:
    grid = Grid.of(table_of(made(["a", "b"], seed=seed)))
    for wanted in ([0], [0, 2], [2, 1, 0]):
        chosen = grid.measured([wanted] * len(grid.selection))
        for row, arm in zip(grid.selection, chosen.tolist(), strict=True):
            assert arm in wanted
            assert row[arm] == min(row[other] for other in wanted)
    assert (grid.measured() == grid.measured([[0, 1, 2]] * len(grid.selection))).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 50))
def test_a_greedy_portfolio_adds_the_arm_that_helps_most(seed: int) -> None:
    table = table_of(made(["a", "b", "c"], seed=seed))
    weight = np.random.default_rng(seed).uniform(0.1, 3, len(table.weight))
    table = replace(table, weight=weight)
    costs = capped_regrets(Grid.of(table))
    chosen = greedy_portfolio(table, 3)
    assert sorted(chosen) == [0, 1, 2]
    assert chosen[:1] == best_arms(table, 1)
    pairs = {
        pair: sum(worth * min(row[list(pair)]) for worth, row in zip(weight, costs, strict=True))
        for pair in combinations(range(3), 2)
    }
    with_first = {pair: cost for pair, cost in pairs.items() if chosen[0] in pair}
    assert set(min(with_first, key=with_first.__getitem__)) == set(chosen[:2])


def slow_gap_closed(judged: Judged, method: str) -> float:
    """(SBS - method) / (SBS - VBS) on mean regrets capped at 3, decision by decision."""
    total = dict.fromkeys((SBS_NATS, method, VBS), 0.0)
    for name in total:
        for regret in judged.outcomes[name].regret.tolist():
            total[name] += min(regret, 3.0)
    return (total[SBS_NATS] - total[method]) / (total[SBS_NATS] - total[VBS])


def test_the_protocol_finds_what_can_be_learnt() -> None:
    records = zoo()
    judged = evaluated(records, table_of(records), selector=SaliencySelector(trees=60, caution=0.0))
    assert len(judged.network) == len(list(records.decisions()))
    for method in (SELECTOR, "selector, verify=2", f"always {METRICS[2]}"):
        expected = slow_gap_closed(judged, method)
        assert judged.gap_closed(method, "capped") == pytest.approx(expected)
    # `l1` is right in every second layer, `taylor` in the others: learnable from the facts alone.
    assert judged.gap_closed(SELECTOR, "capped") > 0.5
    assert judged.gap_closed("group features only", "capped") > 0.5
    assert judged.mean("selector, verify=2", "capped") <= judged.mean(SELECTOR, "capped") + 0.05
    assert judged.mean(f"always {METRICS[2]}", "nats") > judged.mean(SBS_REGRET, "nats")
    low, high = judged.interval(SELECTOR, "capped")
    assert low <= judged.gap_closed(SELECTOR, "capped") <= high
    assert judged.coverage > 0.6
    assert judged.forecast_correlation > 0.8
    assert 0 <= judged.worse_than(SELECTOR, SBS_NATS) <= 0.5
    assert np.isnan(judged.gap_closed(SELECTOR, base=VBS))


def test_the_same_decisions_are_judged_whatever_is_left_out() -> None:
    records = zoo()
    how = SaliencySelector(trees=5)
    table = table_of(records)
    found = {
        split: evaluated(records, table, split, selector=how, baselines=False)
        for split in ("family", "both")
    }
    for method in (VBS, "always l1"):
        assert found["family"].mean(method, "nats") == pytest.approx(
            found["both"].mean(method, "nats")
        )


def test_a_network_that_is_recorded_twice_weighs_as_one_that_is_recorded_once() -> None:
    weights = weights_of(["a", "b-trained", "a-trained", "trained"])
    assert weights == {"a": 0.5, "a-trained": 0.5, "b-trained": 1.0, "trained": 1.0}
