"""Laws of the training distribution: near is inside, far is outside, units do not matter."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.learning.description import DistributionNumbers
from selector.learning.uncertainty import INSIDE, TrainingDistribution
from selector.serialisation import of_plain
from selector.typing import Matrix

COLUMNS = 4


def facts_of(seed: int, decisions: int = 60) -> tuple[Matrix, list[str]]:
    """Facts of decisions on six networks; the last column is the same in all."""
    facts = np.random.default_rng(seed).normal(size=(decisions, COLUMNS))
    facts[:, -1] = 3.0
    return facts, [f"network {number % 6}" for number in range(decisions)]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_nearly_all_that_was_learnt_from_is_inside(seed: int) -> None:
    facts, networks = facts_of(seed)
    inside = TrainingDistribution.fit(facts, networks, seed=0).distance(facts) <= 1
    assert inside.mean() >= INSIDE - 0.05


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_units_do_not_matter(seed: int, unit: float) -> None:
    facts, networks = facts_of(seed)
    others, _ = facts_of(seed + 1)
    scale = np.array([unit, 1.0, 1.0, 1.0])
    one = TrainingDistribution.fit(facts, networks, seed=0).distance(others)
    other = TrainingDistribution.fit(facts * scale, networks, seed=0).distance(others * scale)
    np.testing.assert_allclose(one, other, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, COLUMNS - 1), st.floats(50, 1e6))
def test_what_lies_far_off_in_any_number_is_outside(column: int, away: float) -> None:
    facts, networks = facts_of(0)
    found = TrainingDistribution.fit(facts, networks, seed=0)
    odd = facts[:1].copy()
    odd[0, column] += away
    assert found.distance(odd)[0] > 1


def test_a_number_that_never_changed_counts_in_its_own_units() -> None:
    facts, networks = facts_of(0)
    found = TrainingDistribution.fit(facts, networks, seed=0)
    odd = facts[:1].copy()
    odd[0, -1] += 0.1
    assert found.distance(odd)[0] == pytest.approx(found.distance(facts[:1])[0], abs=0.1)


def test_json_keeps_it() -> None:
    facts, networks = facts_of(0)
    found = TrainingDistribution.fit(facts, networks, seed=0)
    plain = json.loads(json.dumps(asdict(found.as_numbers())))
    again = TrainingDistribution.of_numbers(of_plain(plain, DistributionNumbers, "a distribution"))
    np.testing.assert_array_equal(again.distance(facts), found.distance(facts))
