"""What is computed for many decisions at once is what loops say of each."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.learning.features import (
    Opinions,
    candidates,
    feature_names,
)
from selector.learning.prediction import JointErrors
from selector.learning.selector import SaliencySelector
from selector.records.decision import Decision
from selector.records.records import Records
from selector.saliency.scoring import lowest
from selector.typing import Matrix
from tests.made_records import METRICS, lawful, made

Chance = np.random.Generator


def decisions_of(records: Records) -> list[Decision]:
    return [decision for _, decision, _ in records.decisions()]


def test_candidates_are_the_lowest_scores_ties_by_number() -> None:
    found = decisions_of(made(["a", "b"]))
    tied = {"l1": np.array([2.0, 1.0, 1.0, 0.0, 1.0]), "taylor": np.zeros(5)}
    view = replace(found[0].view, scores=tied)
    found += [Decision(view, count) for count in (1, 2, 3, 5)]
    for decision in found:
        one = candidates(decision, METRICS)
        expected = {
            arm: lowest(torch.from_numpy(scores), decision.count)
            for arm, scores in decision.scores.items()
        }
        assert one == expected
        for arm, channels in one.items():
            order = sorted(range(len(decision.scores[arm])), key=decision.scores[arm].__getitem__)
            assert channels == tuple(sorted(order[: decision.count]))


def test_how_scores_are_spread_by_loops() -> None:
    chance = np.random.default_rng(3)
    scores = {name: chance.uniform(size=7) for name in METRICS}
    said = Opinions.of(scores, METRICS)
    for count in (1, 3, 7):
        rows = said.distribution(range(3), count)
        for name, row in zip(METRICS, rows.tolist(), strict=True):
            values = sorted(scores[name].tolist())
            mean = sum(values) / 7
            deviation = (sum((v - mean) ** 2 for v in values) / 7) ** 0.5
            gini = sum(abs(v - w) for v in values for w in values) / (2 * 7 * sum(values))
            expected = [
                deviation / mean,
                sum((v - mean) ** 3 for v in values) / 7 / deviation**3,
                values[-1] / mean,
                gini,
                (values[min(count, 6)] - values[count - 1]) / deviation,
            ]
            assert row == pytest.approx(expected)


def slow_portfolio(
    draws: Matrix, regret: dict[str, float], sets: dict[str, tuple[int, ...]], first: str
) -> list[str]:
    """Greedy, arm after arm and draw after draw."""
    arms = list(regret)
    kinds: dict[tuple[int, ...], list[str]] = {}
    for arm in [first, *sorted(arms, key=regret.__getitem__)]:
        if arm not in kinds.setdefault(sets[arm], []):
            kinds[sets[arm]].append(arm)
    found = [first]
    best = [_mean(d, kinds[sets[first]], regret, arms) for d in draws]
    while len(found) < len(kinds):
        costs = {}
        for members in kinds.values():
            if members[0] not in found:
                now = [_mean(d, members, regret, arms) for d in draws]
                costs[members[0]] = sum(map(min, best, now))
        name = min(costs, key=costs.__getitem__)
        now = [_mean(d, kinds[sets[name]], regret, arms) for d in draws]
        best = list(map(min, best, now))
        found.append(name)
    return found


def _mean(draw: Matrix, members: Sequence[str], regret: dict[str, float], arms: list[str]) -> float:
    return float(sum(regret[a] + draw[arms.index(a)] for a in members)) / len(members)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), arms=st.integers(1, 6))
def test_portfolios_by_loops(seed: int, arms: int) -> None:
    chance = np.random.default_rng(seed)
    draws = chance.normal(size=(9, arms))
    names = [f"arm{i}" for i in range(arms)]
    regret = {name: float(chance.uniform()) for name in names}
    sets = {name: (int(chance.integers(4)),) for name in names}
    first = names[int(chance.integers(arms))]
    found = JointErrors(draws).portfolio(regret, sets, names, first)
    assert list(found) == slow_portfolio(draws, regret, sets, first)


def test_many_decisions_at_once_are_each_by_itself() -> None:
    learnt = SaliencySelector(trees=10).fit(lawful(["a", "b", "c"], 0, groups=4))
    asked = decisions_of(lawful(["d"], 1, groups=4))
    together = learnt.described(asked)
    assert together.features.shape[1] == len([*feature_names(METRICS), "arm"])
    for number, (decision, one) in enumerate(zip(asked, learnt.predict_many(asked), strict=True)):
        alone = learnt.described([decision])
        np.testing.assert_array_equal(
            alone.features, together.features[together.decision == number]
        )
        assert learnt.predict(decision).cost == one.cost
        assert learnt.predict(decision).portfolio == one.portfolio
