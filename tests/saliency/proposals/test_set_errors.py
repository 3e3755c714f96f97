"""What removing a set costs: the laws of its errors, and a slow twin by least squares."""

import pytest
import torch

from selector.network.tracing import find_groups
from selector.saliency.proposals.covariance import views_of
from selector.saliency.proposals.registry import PROPOSALS
from selector.saliency.proposals.set_errors import ERRORS, NEEDS, SetErrors
from selector.statistics.channel_statistics import Signals
from selector.statistics.collect import measure_signals
from tests.networks import data, small


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
