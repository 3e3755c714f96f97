"""Every two filters compared: the quick way of wide layers against plain differences."""

import pytest
import torch

from selector.statistics import filters, reductions
from selector.statistics.filters import distances_of, filter_products
from selector.statistics.reductions import moments_of_rows


def rows(kind: str, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(37, 53, generator=generator, dtype=torch.float64)
    if kind == "alike":
        drawn = 5 + 1e-3 * drawn
    if kind == "copies":
        drawn[20:] = drawn[3]
    return drawn.to(dtype)


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("kind", ["random", "alike", "copies"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_and_distances_by_loops(
    kind: str, large: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(filters, "LARGE", 0)
        monkeypatch.setattr(filters, "BLOCK", 8)
    given = rows(kind, dtype)
    weight = given.double()
    products = filter_products(given)
    distances = distances_of(products)
    assert torch.equal(products, products.T)
    assert torch.equal(distances, distances.T)
    assert not distances.diagonal().any()
    slow = torch.stack([torch.stack([(a * b).sum() for b in weight]) for a in weight])
    scale = float(weight.norm(dim=1).max())
    assert torch.allclose(products, slow, rtol=0, atol=(1e-6 if large else 1e-13) * scale**2)
    apart = torch.stack([torch.stack([(a - b).norm() for b in weight]) for a in weight])
    spread = float(apart.max())
    # The sum over all filters is what a metric reads; one distance of copies may be rounding.
    assert torch.allclose(distances.sum(1), apart.sum(1), rtol=1e-4 if large else 1e-6)
    assert torch.allclose(distances, apart, rtol=0, atol=(2e-3 if large else 1e-6) * spread)


def test_wide_and_narrow_give_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    given = torch.randn(64, 300, generator=torch.Generator().manual_seed(1)) * 0.05
    expected = distances_of(filter_products(given)).sum(1).argsort()
    monkeypatch.setattr(filters, "LARGE", 0)
    assert torch.equal(distances_of(filter_products(given)).sum(1).argsort(), expected)


def test_moments_of_rows_in_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reductions, "ROWS_AT_ONCE", 100)
    given = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    found, whole = moments_of_rows(given), given.double()
    assert torch.equal(found.sum, whole.sum(1))
    assert torch.equal(found.absolute, whole.abs().sum(1))
    assert torch.equal(found.square, whole.square().sum(1))
