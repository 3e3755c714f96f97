"""Batches are the same on every reading, hold every image once, and are normalised as asked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selector.data.image_data import ImageData, TensorBatches
from selector.errors import SelectorError


def pixels(count: int) -> Tensor:
    chance = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 5, 6), generator=chance, dtype=torch.uint8)


def data(count: int = 10) -> ImageData:
    return ImageData(pixels(count), torch.arange(count) % 3, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (pixels(2).float(), torch.tensor([0, 1]), "images must be uint8"),
        (pixels(2)[0], torch.tensor([0, 1, 2]), r"of shape \(3, 5, 6\)"),
        (pixels(2), torch.tensor([0]), r"labels must be int64 of shape \(2,\)"),
        (pixels(2), torch.tensor([0, 7]), "labels run from 0 to 7, but 3 class names"),
        (pixels(0), torch.tensor([], dtype=torch.int64), "no images"),
    ],
)
def test_image_data_refuses_what_does_not_fit(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(SelectorError, match=message):
        ImageData(images, labels, ("a", "b", "c"))


@settings(deadline=None)
@given(count=st.integers(1, 12), batch_size=st.integers(1, 15))
def test_batches_can_be_read_again_and_hold_everything_once(count: int, batch_size: int) -> None:
    source = data(count)
    batches = TensorBatches(source, batch_size=batch_size, mean=(0.4, 0.5, 0.6), std=(0.2,))
    first, second = list(batches), list(batches)
    assert len(first) == len(batches)
    for (inputs, targets), (again, targets_again) in zip(first, second, strict=True):
        assert torch.equal(inputs, again)
        assert torch.equal(targets, targets_again)
    whole = torch.cat([inputs for inputs, _ in first])
    mean = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    torch.testing.assert_close(whole, (source.images / 255 - mean) / 0.2)
    assert whole.dtype == torch.float32
    assert torch.equal(torch.cat([targets for _, targets in first]), source.labels)


def test_bgr_reverses_the_planes_before_normalising() -> None:
    mean = (0.1, 0.2, 0.3)
    inputs, _ = next(iter(TensorBatches(data(), mean=mean, bgr=True)))
    expected = data().images.flip(1) / 255 - torch.tensor(mean).view(3, 1, 1)
    torch.testing.assert_close(inputs, expected)


def test_subset_keeps_order_and_normalisation() -> None:
    batches = TensorBatches(data(), batch_size=2, mean=(0.5,), std=(0.5,), bgr=True)
    rows = torch.tensor([7, 1, 4])
    part = batches.subset(rows)
    assert len(part) == 2
    whole = torch.cat([inputs for inputs, _ in batches])
    assert torch.equal(torch.cat([inputs for inputs, _ in part]), whole[rows])
    assert torch.equal(torch.cat([targets for _, targets in part]), data().labels[rows])


@pytest.mark.parametrize(
    ("batch_size", "mean", "std", "message"),
    [
        (0, (0.0,), (1.0,), "batch_size is 0"),
        (4, (0.0, 0.0), (1.0,), "mean has 2 values but the images have 3 channels"),
        (4, (0.0,), (), "std has 0 values"),
        (4, (0.0,), (0.0,), "every value must be above 0"),
    ],
)
def test_bad_batches_are_refused(
    batch_size: int, mean: tuple[float, ...], std: tuple[float, ...], message: str
) -> None:
    with pytest.raises(SelectorError, match=message):
        TensorBatches(data(), batch_size=batch_size, mean=mean, std=std)


def test_bgr_needs_three_planes() -> None:
    gray = ImageData(pixels(2)[:, :1], torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(SelectorError, match="bgr needs images of 3 channels, these have 1"):
        TensorBatches(gray, bgr=True)
