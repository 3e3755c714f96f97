"""Greedy elimination takes at every step what refitting by least squares says costs least."""

import time
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.network.input_products import RIDGE
from selector.saliency.proposals import elimination, reconstruction
from selector.saliency.proposals.covariance import View, merged
from selector.saliency.proposals.elimination import eliminate, eliminate_together
from selector.saliency.proposals.reconstruction import pivots
from tests.saliency.proposals.twins import error, made_view, pivots_of


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
    views = [made_view(channels * width, seed + i) for i, width in enumerate(widths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elimination, "PANEL", panel)
        gone = eliminate(views, channels, channels - 1)
    assert len(set(gone)) == channels - 1
    check_greedy(views, channels, gone)


def test_fewer_are_the_first_of_more() -> None:
    views = [made_view(100, 0), made_view(200, 1)]
    order = eliminate(views, 100, 99)
    for count in (1, 47, 48, 49, 97):
        assert eliminate(views, 100, count) == order[:count]


def test_panels_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    views = [made_view(60, 3)]
    order = eliminate(views, 60, 59)
    monkeypatch.setattr(elimination, "PANEL", 1)
    assert eliminate(views, 60, 59) == order


@settings(deadline=None, max_examples=25)
@given(
    groups=st.integers(1, 4),
    channels=st.integers(2, 9),
    widths=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    rank=st.integers(1, 30),
    constant=st.booleans(),
    panel=st.sampled_from([2, 48]),
)
def test_groups_that_are_eliminated_together_go_as_they_go_alone(
    groups: int, channels: int, widths: list[int], rank: int, constant: bool, panel: int
) -> None:
    together = [
        [
            made_view(channels * width, 10 * group + i, rank=rank, constant=constant)
            for i, width in enumerate(widths)
        ]
        for group in range(groups)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elimination, "PANEL", panel)
        orders = eliminate_together(together, channels, channels - 1)
    for views, order in zip(together, orders, strict=True):
        check_greedy(views, channels, order)


@settings(deadline=None, max_examples=25)
@given(
    number=st.integers(1, 4),
    channels=st.integers(1, 12),
    rank=st.integers(1, 20),
    constant=st.booleans(),
    panel=st.sampled_from([2, 48]),
)
def test_pivots_are_those_of_the_decomposition_column_by_column(
    number: int, channels: int, rank: int, constant: bool, panel: int
) -> None:
    generator = torch.Generator().manual_seed(rank)
    rows = torch.randn(number, rank, channels, generator=generator, dtype=torch.float64)
    if constant:
        rows[..., 0] = 0
    matrices = rows.mT @ rows + 0.1 * torch.diag_embed(rows.square().sum(1))
    expected = [pivots_of(matrix) for matrix in matrices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "PANEL", panel)
        assert pivots(matrices) == expected


def test_views_of_the_same_inputs_count_as_one() -> None:
    one, other = made_view(40, 0), made_view(40, 1)
    again = View(one.inputs.clone(), made_view(40, 2).outputs)
    assert len(merged([one, other, again])) == 2
    assert eliminate(merged([one, other, again]), 20, 19) == eliminate([one, other, again], 20, 19)


def test_what_is_small_in_every_consumer_goes_before_what_one_needs() -> None:
    inputs = torch.eye(3, dtype=torch.float64) * (1 + RIDGE)
    one = View(inputs, torch.diag(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)))
    other = View(inputs, torch.diag(torch.tensor([0.9, 0.1, 0.1], dtype=torch.float64)))
    assert eliminate([one], 3, 2) == [0, 1]
    assert eliminate([one, other], 3, 2) == [1, 2]


def test_a_wide_group_takes_seconds() -> None:
    started = time.process_time()
    assert len(set(eliminate([made_view(1024, 0)], 1024, 512))) == 512
    assert time.process_time() - started < 20
