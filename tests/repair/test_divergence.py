"""The divergence against loops that follow the formula."""

import math

import pytest
import torch
from torch import Tensor

from selector.repair.distillation.divergence import TEMPERATURE, Divergence


def slow_divergence(ours: Tensor, theirs: Tensor) -> float:
    """Hinton et al., arXiv 1503.02531: the divergence of softened outputs, times T squared."""
    total = 0.0
    for our_row, their_row in zip(ours.tolist(), theirs.tolist(), strict=True):
        our_exp = [math.exp(z / TEMPERATURE) for z in our_row]
        their_exp = [math.exp(z / TEMPERATURE) for z in their_row]
        for q, p in zip(our_exp, their_exp, strict=True):
            share, wanted = q / sum(our_exp), p / sum(their_exp)
            total += wanted * (math.log(wanted) - math.log(share))
    return TEMPERATURE**2 * total / len(ours)


def test_logits_are_compared_as_the_paper_does() -> None:
    ours, theirs = torch.randn(2, 6, 5, dtype=torch.float64) * 5
    divergence = Divergence.measured(theirs)
    assert float(divergence(ours, theirs)) == pytest.approx(slow_divergence(ours, theirs))
    assert float(divergence(theirs, theirs)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3, 4), (6, 3, 4, 4)])
def test_other_outputs_are_compared_relative_to_their_variance(shape: tuple[int, ...]) -> None:
    ours, theirs = torch.randn(2, *shape, dtype=torch.float64) * 5
    divergence = Divergence.measured(theirs)
    mean = theirs.mean(0, keepdim=True)
    expected = ((ours - theirs) ** 2).mean() / ((theirs - mean) ** 2).mean()
    assert float(divergence(ours, theirs)) == pytest.approx(float(expected))
    # The unit of the outputs does not matter, and their mean scores 1.
    assert float(Divergence.measured(9 * theirs)(9 * ours, 9 * theirs)) == pytest.approx(
        float(expected)
    )
    assert float(divergence(mean.expand_as(theirs), theirs)) == pytest.approx(1)


def test_outputs_are_summed() -> None:
    logits, maps = torch.randn(2, 4, 3), torch.randn(2, 4, 2, 2)
    both = Divergence.measured({"a": logits[0], "b": (maps[0],)})
    single = [Divergence.measured(x[0])(x[1], x[0]) for x in (logits, maps)]
    value = both({"a": logits[1], "b": (maps[1],)}, {"a": logits[0], "b": (maps[0],)})
    assert float(value) == pytest.approx(float(sum(single)))
