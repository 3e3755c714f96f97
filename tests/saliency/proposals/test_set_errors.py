"""What removing a set costs: the laws of its errors, and a slow twin by least squares."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.network.tracing import find_groups
from selector.saliency.proposals import set_errors
from selector.saliency.proposals.covariance import View, views_of
from selector.saliency.proposals.registry import PROPOSALS
from selector.saliency.proposals.set_errors import ERRORS, NEEDS, SetErrors, ViewErrors, chains
from selector.statistics.channel_statistics import Signals
from selector.statistics.collect import measure_signals
from selector.statistics.gate_fisher import Pairs
from tests.networks import data, small
from tests.saliency.proposals.twins import error, made_view


@pytest.fixture(scope="module")
def signals() -> dict[str, Signals]:
    model, batches = small("residual", 6, norm=True).double(), data(64, 16)
    groups = find_groups(model, batches[0][0]).prunable
    return measure_signals(model, batches, groups, needs=NEEDS, gradients="softened")


def test_errors_are_what_greedy_elimination_adds_up(signals: dict[str, Signals]) -> None:
    """Of single channels, the one that elimination takes first costs least."""
    for of_group in signals.values():
        errors = SetErrors.of(of_group)
        for column, name in enumerate(("reconstruction", "reconstruction_fisher")):
            (first,) = PROPOSALS[name].propose(of_group, 1)
            alone = errors.of_sets([(c,) for c in range(of_group.channels)])[:, column]
            assert int(alone.argmin()) == first


def test_errors_grow_with_the_set(signals: dict[str, Signals]) -> None:
    for of_group in signals.values():
        sets = [tuple(range(count)) for count in range(1, of_group.channels)]
        found = SetErrors.of(of_group).of_sets(sets)
        assert found.shape == (len(sets), len(ERRORS))
        assert (found >= 0).all()
        assert (found[1:, :2] >= found[:-1, :2] - 1e-9).all()


def test_residual_is_that_of_a_ridge_regression(signals: dict[str, Signals]) -> None:
    """The slow twin: the error by the Schur complement of the covariance, block by block."""
    for of_group in signals.values():
        gone = (0, of_group.channels - 1)
        views = views_of(of_group)
        expected = 0.0
        for view in views:
            width = len(view.inputs) // of_group.channels
            out = torch.tensor([c * width + i for c in gone for i in range(width)])
            kept = torch.tensor([i for i in range(len(view.inputs)) if i not in out.tolist()])
            a = view.inputs
            slopes = torch.linalg.solve(a[kept][:, kept], a[kept][:, out])
            left = a[out][:, out] - a[out][:, kept] @ slopes
            expected += float((left * view.outputs[out][:, out]).sum())
        found = SetErrors.of(of_group).of_sets([gone])[0, 0]
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


def errors_of(views: list[View], channels: int) -> SetErrors:
    errors = [ViewErrors(view.inverse, (view.outputs, 2 * view.outputs)) for view in views]
    return SetErrors(errors, channels, Pairs(np.zeros(channels), np.eye(channels)))


@settings(deadline=None, max_examples=25)
@given(
    channels=st.integers(2, 12),
    width=st.integers(1, 2),
    rank=st.integers(1, 30),
    constant=st.booleans(),
    narrow=st.sampled_from([0, 64]),
    seed=st.integers(0, 10_000),
)
def test_sets_that_are_priced_together_cost_what_least_squares_says(
    channels: int, width: int, rank: int, constant: bool, narrow: int, seed: int
) -> None:
    """Side by side or along chains, few images, a constant input, one channel left."""
    view = made_view(channels * width, seed, rank=rank, constant=constant)
    chance = np.random.default_rng(seed)
    orders = [chance.permutation(channels).tolist() for _ in range(3)]
    counts = range(1, channels)
    sets = [tuple(sorted(order[:count])) for order in orders for count in counts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(set_errors, "NARROW", narrow)
        found = errors_of([view], channels).of_sets(sets)
    expected = np.array([error(view, channels, gone) for gone in sets])
    floor = 1e-6 * float((view.inputs * view.outputs).sum())
    assert found[:, 0] == pytest.approx(expected, rel=1e-5, abs=floor)
    assert found[:, 1] == pytest.approx(2 * expected, rel=1e-5, abs=2 * floor)


def test_a_wide_group_costs_the_same_along_chains_as_side_by_side() -> None:
    view = made_view(300, 5, rank=100)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1)).tolist()
    sets = [tuple(sorted(order[:count])) for count in (1, 30, 150, 151, 299)]
    errors = errors_of([view], 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(set_errors, "NARROW", 300)
        exact = errors.of_sets(sets)
    assert errors.of_sets(sets) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("rank", [3, 300])
def test_a_very_wide_group_is_priced_within_the_error_that_is_stated(rank: int) -> None:
    """In the mean over networks right, and off by less than four standard errors in each."""
    orders = [torch.randperm(300, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    counts = (1, 30, 31, 150, 299)
    sets = [tuple(sorted(order[:count].tolist())) for order in orders for count in counts]
    ratios = []
    for seed in range(6):
        view = made_view(300, seed, rank=100, outputs=rank)
        errors = errors_of([view], 300)
        exact = errors.of_sets(sets)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(set_errors, "WIDE", 299)
            found = errors.of_sets(sets)
        ratios.append(found[:, :2] / exact[:, :2])
    # Sets of one channel are spread over one direction.
    assert np.abs(np.log(ratios)).max() < 4 * (2 / set_errors.COLUMNS) ** 0.5
    assert np.median(ratios) == pytest.approx(1, abs=0.05)


def test_a_very_wide_group_is_priced_by_few_images_whose_products_are_rounded() -> None:
    """Their products are not even positive semi-definite; what is missing is rounding alone."""
    view = made_view(300, 2, rank=100, outputs=3)
    rounded = View(view.inputs, view.outputs.float().double())
    assert torch.linalg.eigvalsh(rounded.outputs)[0] < 0
    errors = errors_of([rounded], 300)
    sets = [tuple(range(count)) for count in (30, 150, 299)]
    exact = errors.of_sets(sets)[:, :2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(set_errors, "WIDE", 299)
        found = errors.of_sets(sets)[:, :2]
    assert found == pytest.approx(exact, rel=4 * (2 / set_errors.COLUMNS) ** 0.5)


def test_a_very_wide_group_that_nobody_reads_costs_nothing() -> None:
    view = made_view(80, 1)
    silent = View(view.inputs, torch.zeros_like(view.outputs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(set_errors, "WIDE", 79)
        assert errors_of([silent], 80).of_sets([(0, 3)])[:, :2] == pytest.approx(0, abs=1e-20)
        of_none, _ = errors_of([view], 80).of_sets([(), (0, 3)])
    assert not of_none.any()


@given(st.lists(st.sets(st.integers(0, 7), min_size=1), min_size=1, max_size=12))
def test_in_a_chain_each_set_holds_the_one_before(sets: list[set[int]]) -> None:
    chosen = np.array([[channel in one for channel in range(8)] for one in sets])
    found = chains(chosen)
    assert sorted(number for chain in found for number in chain) == list(range(len(sets)))
    for chain in found:
        assert all(sets[a] <= sets[b] for a, b in pairwise(chain))


def test_one_order_is_one_chain() -> None:
    chosen = np.tril(np.ones((6, 6), dtype=bool))
    assert chains(chosen[[3, 1, 1, 5]]) == [[1, 2, 0, 3]]
