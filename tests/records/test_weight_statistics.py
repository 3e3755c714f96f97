"""What is said of a group's weights, narrow or wide, against a full decomposition."""

import pytest
import torch

from selector.records.describe import _weight_statistics


def slow(weight: torch.Tensor) -> dict[str, float]:
    norms = [float(row.norm()) for row in weight]
    mean = sum(norms) / len(norms)
    deviation = (sum((n - mean) ** 2 for n in norms) / len(norms)) ** 0.5
    cosines = [
        float(a @ b) / (m * n)
        for i, (a, m) in enumerate(zip(weight, norms, strict=True))
        for j, (b, n) in enumerate(zip(weight, norms, strict=True))
        if i != j and m and n
    ]
    values = torch.linalg.svdvals(weight)
    return {
        "norm_spread": deviation / mean,
        "norm_skew": sum((n - mean) ** 3 for n in norms) / len(norms) / deviation**3,
        "norm_kurtosis": sum((n - mean) ** 4 for n in norms) / len(norms) / deviation**4,
        "stable_rank": float(values.square().sum() / values[0] ** 2) / len(values),
        "mean_cosine": sum(cosines) / len(norms) / (len(norms) - 1),
    }


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (40, 300), (270, 280)])
def test_weight_statistics_by_loops(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight[1] = 0
    assert _weight_statistics(weight) == pytest.approx(slow(weight), rel=1e-9, abs=1e-12)


def test_wide_layers_are_described_to_five_digits_in_no_time() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2100, 2100, generator=generator, dtype=torch.float64)
    found = _weight_statistics(weight)["stable_rank"]
    largest = float(torch.linalg.eigvalsh(weight @ weight.T)[-1])
    assert found == pytest.approx(float(weight.square().sum()) / largest / 2100, rel=1e-5)
    assert found == _weight_statistics(weight)["stable_rank"]


@pytest.mark.parametrize("channels", [3, 300, 2100])
def test_weights_of_nothing_have_statistics(channels: int) -> None:
    found = _weight_statistics(torch.zeros(channels, channels, dtype=torch.float64))
    assert all(value == 0 for value in found.values())
