"""The one formula of regret, by loops; what was not measured has none and changes no other."""

from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selector.learning.regret import FLOOR_NATS, regrets

LOSSES = st.one_of(st.none(), st.floats(-1, 10))


def by_hand(row: list[float | None], judged: float | None) -> float:
    known = [value for value in row if value is not None]
    if judged is None or not known:
        return float("nan")
    return (judged - min(known)) / (median(known) - min(known) + FLOOR_NATS)


@given(st.lists(st.lists(LOSSES, min_size=5, max_size=5), min_size=1, max_size=4))
def test_regrets_by_loops(rows: list[list[float | None]]) -> None:
    nats = np.array(rows, np.float64)
    expected = np.array([[by_hand(row, value) for value in row] for row in rows])
    np.testing.assert_allclose(regrets(nats), expected, rtol=1e-12)
    np.testing.assert_allclose(regrets(nats[0]), expected[0], rtol=1e-12)
    np.testing.assert_allclose(regrets(nats[None])[0], expected, rtol=1e-12)


def test_other_choices_are_judged_by_the_arms() -> None:
    nats = np.array([[0.3, 0.1, 0.2, np.nan], [1.0, 2.0, 3.0, 4.0]])
    single = regrets(nats, np.array([0.4, 0.5]))
    assert single.tolist() == pytest.approx([0.3 / 0.102, -0.5 / 1.502])
    several = regrets(nats, np.array([[0.4, 0.1], [0.5, 1.0]]))
    assert several[:, 0].tolist() == single.tolist()
    assert several[:, 1].tolist() == [0.0, 0.0]
