"""Joint sets, against loops over sets, and against all sets where there are few."""

from itertools import combinations
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.saliency.proposals.joint import greedy, joint, swapped
from selector.statistics.channel_statistics import Signals
from selector.statistics.gate_fisher import Pairs, WidePairs


def made_pairs(channels: int, seed: int) -> Pairs:
    generator = np.random.default_rng(seed)
    effects = generator.normal(size=(2 * channels, channels))
    effects += generator.normal(size=(2 * channels, 1))
    return Pairs(effects.mean(0), effects.T @ effects / len(effects))


def value(pairs: Pairs, weight: float, chosen: tuple[int, ...] | list[int]) -> float:
    """f of a set, as its formula says."""
    first = sum(float(pairs.first[c]) for c in chosen)
    second = sum(float(pairs.second[c, d]) for c in chosen for d in chosen)
    return second / 2 - weight * first


CASES = given(
    channels=st.integers(2, 8),
    seed=st.integers(0, 10_000),
    weight=st.sampled_from([0.0, 0.5, 1.0]),
    data=st.data(),
)


@settings(deadline=None, max_examples=30)
@CASES
def test_greedy_adds_what_raises_f_least(
    channels: int, seed: int, weight: float, data: st.DataObject
) -> None:
    pairs = made_pairs(channels, seed)
    chosen = greedy(pairs, weight, data.draw(st.integers(1, channels - 1)))
    for step, channel in enumerate(chosen):
        before = chosen[:step]
        free = [c for c in range(channels) if c not in before]
        best = min(value(pairs, weight, [*before, c]) for c in free)
        assert value(pairs, weight, [*before, channel]) == pytest.approx(best, abs=1e-9)


def test_what_was_added_for_one_number_serves_the_others() -> None:
    pairs = made_pairs(6, 3)
    signals = cast(Signals, SimpleNamespace(pairs={"plain": pairs}, memo={}))
    propose = joint(0.5)
    for count in (2, 5, 1, 3):
        assert propose(signals, count) == swapped(pairs, 0.5, greedy(pairs, 0.5, count))


@settings(deadline=None, max_examples=30)
@CASES
def test_no_swap_helps_afterwards_and_none_has_harmed(
    channels: int, seed: int, weight: float, data: st.DataObject
) -> None:
    pairs = made_pairs(channels, seed)
    start = list(range(data.draw(st.integers(1, channels - 1))))
    chosen = swapped(pairs, weight, start)
    assert len(set(chosen)) == len(start)
    found = value(pairs, weight, chosen)
    assert found <= value(pairs, weight, start) + 1e-9
    for gone in chosen:
        for new in set(range(channels)) - set(chosen):
            other = [c for c in chosen if c != gone] + [new]
            assert value(pairs, weight, other) >= found - 1e-6


def test_swaps_reach_the_best_pair_that_greedy_misses() -> None:
    # Channel 0 is the least harmful alone; 1 and 2 undo each other.
    second = np.array([[1.0, 0.9, 0.9], [0.9, 2.0, -1.9], [0.9, -1.9, 2.0]])
    pairs = Pairs(np.zeros(3), second)
    assert 0 in greedy(pairs, 0.0, 2)
    best = min(combinations(range(3), 2), key=lambda s: value(pairs, 0.0, s))
    assert tuple(swapped(pairs, 0.0, greedy(pairs, 0.0, 2))) == best == (1, 2)


def test_the_first_order_counts_by_its_weight() -> None:
    # Removing channel 1 lowers the loss to first order, and does more to second.
    pairs = Pairs(np.array([0.0, 1.0]), np.diag([1.0, 1.5]))
    assert [greedy(pairs, weight, 1) for weight in (0.0, 1.0)] == [[0], [1]]


def test_rows_of_a_wide_group_give_what_their_pairs_give() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 12))
    pairs, wide = Pairs(rows.mean(0), rows.T @ rows), WidePairs(rows.mean(0), rows)
    for weight in (0.0, 0.5, 1.0):
        one, other = (swapped(p, weight, greedy(p, weight, 5)) for p in (pairs, wide))
        assert one == other
