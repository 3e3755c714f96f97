"""The weight of the damage beside the regret: what it is worth is found, not believed."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from selector.learning.boosters import WEIGHTS, best_weight, excess
from selector.learning.selector import SaliencySelector
from selector.learning.table import TrainingTable, log_damage, names_of, training_table
from selector.typing import Matrix
from tests.made_records import lawful, made


def a_table() -> TrainingTable:
    records = made(["a", "b", "c"], groups=3)
    return training_table(records, *names_of(records))


@given(st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=5), min_size=1, max_size=5))
def test_excess_by_its_slow_twin(decisions: list[list[float]]) -> None:
    rows = np.array([value for one in decisions for value in one])
    numbers = np.repeat(np.arange(len(decisions)), [len(one) for one in decisions])
    expected = [value - min(one) for one in decisions for value in one]
    np.testing.assert_array_equal(excess(rows, numbers), expected)


def slow_cost(table: TrainingTable, regrets: Matrix, logs: Matrix, weight: float) -> float:
    total = 0.0
    for number, worth in enumerate(table.weight.tolist()):
        rows = np.flatnonzero(table.seen.decision == number).tolist()
        chosen = min(rows, key=lambda row: regrets[row] + weight * logs[row])
        total += worth * float(table.regret[chosen])
    return total / float(table.weight.sum())


@given(st.integers(0, 1000))
def test_no_other_weight_would_have_been_better(seed: int) -> None:
    table, chance = a_table(), np.random.default_rng(seed)
    table = replace(table, weight=chance.uniform(0.1, 3, len(table.weight)))
    noise, other = chance.normal(0, 1, (2, len(table.nats)))
    regrets, logs = table.regret + noise, log_damage(table.nats) + other
    found = best_weight(table, regrets, logs)
    costs = {weight: slow_cost(table, regrets, logs, weight) for weight in WEIGHTS}
    assert found in WEIGHTS
    assert costs[found] <= min(costs.values()) + 1e-12


def test_a_forecast_without_errors_is_heard_and_one_of_noise_is_not() -> None:
    table, chance = a_table(), np.random.default_rng(3)
    noise = chance.normal(0, 3, len(table.nats))
    assert best_weight(table, noise, log_damage(table.nats)) >= 1
    assert best_weight(table, table.regret, noise) == 0


def test_a_prediction_is_the_regret_and_the_weighed_damage_above_the_least() -> None:
    learnt = SaliencySelector(trees=20).fit(lawful([f"network{i}" for i in range(6)], 0))
    for weight in (0.0, 2.0):
        learnt.damage_weight_ = weight
        for _, decision, _ in lawful(["unseen"], 7).decisions():
            seen, found = learnt.described([decision]), learnt.predict(decision)
            regret = np.mean([b.predict(seen.features) for b in learnt._regret], 0)
            cost = regret + weight * learnt._damage.predict(seen.features)
            np.testing.assert_allclose(list(found.cost.values()), cost - cost.min(), atol=1e-9)
