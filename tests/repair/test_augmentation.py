"""Shifts and mirroring: every image is a crop of itself, and chance is the caller's."""

import pytest
import torch

from selector.repair.distillation.augmentation import mirrored, shifted


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 40), (8, 8), (7, 5)])
def test_every_image_is_a_crop_of_its_reflected_self(height: int, width: int) -> None:
    images = torch.randn(20, 2, height, width)
    result = shifted(images, generator=torch.Generator().manual_seed(0))
    down, right = height // 8, width // 8
    for image, moved in zip(images, result, strict=True):
        padded = torch.nn.functional.pad(image, (right, right, down, down), mode="reflect")
        crops = [
            padded[:, top : top + height, left : left + width]
            for top in range(2 * down + 1)
            for left in range(2 * right + 1)
        ]
        assert any(torch.equal(moved, crop) for crop in crops)
    again = shifted(images, generator=torch.Generator().manual_seed(0))
    assert torch.equal(result, again)


def test_shifts_reach_every_distance() -> None:
    columns = torch.arange(32.0).expand(400, 1, 32, 32).contiguous()
    result = shifted(columns, generator=torch.Generator().manual_seed(0))
    assert set(result[:, 0, 0, 16].tolist()) == set(range(12, 21))


def test_about_half_is_mirrored() -> None:
    images = torch.randn(200, 1, 4, 4)
    result = mirrored(images, generator=torch.Generator().manual_seed(0))
    flipped = [torch.equal(a, b.flip(-1)) for a, b in zip(images, result, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(images, result, strict=True)]
    assert all(f != k for f, k in zip(flipped, kept, strict=True))
    assert 70 < sum(flipped) < 130
