"""Sums over positions are the same however a map lies in memory."""

import math

import pytest
import torch
from torch import Tensor

from selector.statistics.reductions import sums_over_positions


def slow(first: Tensor, second: Tensor | None) -> Tensor:
    """The sums in loops."""
    images, inputs, positions = first.shape
    found = torch.zeros(3, images, inputs, dtype=torch.float64)
    for n in range(images):
        for c in range(inputs):
            values = [
                float(first[n, c, p]) * (1.0 if second is None else float(second[n, c, p]))
                for p in range(positions)
            ]
            found[0, n, c] = math.fsum(values)
            found[1, n, c] = math.fsum(map(abs, values))
            found[2, n, c] = math.fsum(value * value for value in values)
    return found


@pytest.mark.parametrize("shape", [(3, 4, 1), (3, 4, 5), (1, 7, 3), (2, 1, 6)])
@pytest.mark.parametrize("layout", ["maps", "tokens", "strided"])
@pytest.mark.parametrize("product", [False, True])
def test_sums_over_positions(shape: tuple[int, ...], layout: str, product: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def laid_out() -> Tensor:
        images, inputs, positions = shape
        if layout == "maps":
            return torch.randn(shape, generator=generator)
        if layout == "tokens":
            return torch.randn(images, positions, inputs, generator=generator).transpose(1, 2)
        return torch.randn(images, 2 * inputs, positions, generator=generator)[:, ::2]

    first, second = laid_out(), laid_out() if product else None
    before = first.clone()
    found = sums_over_positions(first, second)
    torch.testing.assert_close(found, slow(first, second), rtol=1e-5, atol=1e-6)
    assert torch.equal(first, before)


def test_many_images_are_summed_some_at_a_time() -> None:
    first = torch.randn(300, 20, 64, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    wide = first.double()
    expected = torch.stack([wide.sum(2), wide.abs().sum(2), wide.square().sum(2)])
    torch.testing.assert_close(sums_over_positions(first), expected, rtol=1e-5, atol=1e-4)
