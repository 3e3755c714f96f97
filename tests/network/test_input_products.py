"""Products of inputs: what is constant, and what single precision cannot tell, has no spread."""

import pytest
import torch

from selector.network.input_products import centred, products_with_constant, ridged_correlation


@pytest.mark.parametrize("mean", [0.0, 1.0, 300.0])
def test_they_are_the_covariance_of_the_rows(mean: float) -> None:
    rows = mean + torch.randn(1, 200, 5, generator=torch.Generator().manual_seed(0))
    parts = [products_with_constant(part)[0] for part in rows.split(70, 1)]
    covariance, means, scale = centred(sum(parts))
    expected = torch.cov(rows[0].double().T, correction=0) * 200
    assert torch.allclose(covariance, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))
    assert torch.allclose(means, rows[0].double().mean(0))
    assert torch.allclose(scale.square(), expected.diagonal(), rtol=1e-4)


@pytest.mark.parametrize("size", [1.0, 1e-20, 1e-43])
def test_a_correlation_can_be_factored_whatever_the_size(size: float) -> None:
    chance = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 16, 30, generator=chance) * size + size
    rows[..., 3] = 2 * size
    covariance, _, scale = centred(products_with_constant(rows)[0])
    found = ridged_correlation(covariance, scale)
    torch.linalg.cholesky(found)
    assert bool(scale.gt(0).any()) == (size == 1)
    assert scale[3] == 0
