"""Greedy elimination takes at every step what refitting by least squares says costs least."""

import time
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.network.input_products import RIDGE
from selector.saliency.proposals import elimination
from selector.saliency.proposals.covariance import View
from selector.saliency.proposals.elimination import eliminate
from tests.saliency.proposals.twins import error


def view(inputs: int, seed: int) -> View:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3 * inputs, inputs, generator=generator, dtype=torch.float64)
    rows += rows[:, :1]  # All have something in common.
    rows /= rows.square().sum(0).sqrt()
    products = rows.T @ rows
    products.diagonal().add_(RIDGE)
    weights = torch.randn(inputs, 4, generator=generator, dtype=torch.float64)
    return View(products, weights @ weights.T)


def check_greedy(views: Sequence[View], channels: int, gone: Sequence[int]) -> None:
    for step, channel in enumerate(gone):
        before = gone[:step]
        costs = {
            c: sum(error(v, channels, [*before, c]) for v in views)
            for c in range(channels)
            if c not in before
        }
        assert costs[channel] <= min(costs.values()) * (1 + 1e-6) + 1e-9, (step, costs)


@settings(deadline=None, max_examples=25)
@given(
    channels=st.integers(2, 9),
    widths=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
    panel=st.sampled_from([1, 2, 3, 48]),
)
def test_every_step_is_the_cheapest_by_least_squares(
    channels: int, widths: list[int], seed: int, panel: int
) -> None:
    views = [view(channels * width, seed + i) for i, width in enumerate(widths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elimination, "PANEL", panel)
        gone = eliminate(views, channels, channels - 1)
    assert len(set(gone)) == channels - 1
    check_greedy(views, channels, gone)


def test_fewer_are_the_first_of_more() -> None:
    views = [view(100, 0), view(200, 1)]
    order = eliminate(views, 100, 99)
    for count in (1, 47, 48, 49, 97):
        assert eliminate(views, 100, count) == order[:count]


def test_panels_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    views = [view(60, 3)]
    order = eliminate(views, 60, 59)
    monkeypatch.setattr(elimination, "PANEL", 1)
    assert eliminate(views, 60, 59) == order


def test_what_is_small_in_every_consumer_goes_before_what_one_needs() -> None:
    inputs = torch.eye(3, dtype=torch.float64) * (1 + RIDGE)
    one = View(inputs, torch.diag(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)))
    other = View(inputs, torch.diag(torch.tensor([0.9, 0.1, 0.1], dtype=torch.float64)))
    assert eliminate([one], 3, 2) == [0, 1]
    assert eliminate([one, other], 3, 2) == [1, 2]


def test_a_wide_group_takes_seconds() -> None:
    started = time.process_time()
    assert len(set(eliminate([view(1024, 0)], 1024, 512))) == 512
    assert time.process_time() - started < 20
