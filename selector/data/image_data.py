"""Labelled images in memory, and normalised batches over them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selector.errors import SelectorError


@dataclass(frozen=True, eq=False)
class ImageData:
    """Decoded images with their labels, kept as bytes so that many fit in memory.

    Attributes:
        images: Pixels 0..255, uint8, shape (images, channels, height, width).
        labels: Class numbers, int64, shape (images,).
        classes: One name for each class number.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what would otherwise fail, or worse not fail, far from here."""
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise SelectorError(
                "images must be uint8 of shape (images, channels, height, width), got "
                f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise SelectorError(
                f"labels must be int64 of shape ({len(self.images)},), one for each image, got "
                f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        if len(self.labels) == 0:
            raise SelectorError("no images: at least one labelled image is needed")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise SelectorError(
                f"labels run from {low} to {high}, but {len(self.classes)} class names are known; "
                "labels must count from 0 and every class needs a name"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def subset(self, indices: Tensor) -> "ImageData":
        """Return the images at `indices` (int64 positions or a bool mask), in that order."""
        return ImageData(self.images[indices], self.labels[indices], self.classes)


class TensorBatches:
    """Normalised batches over labelled images: the same ones, in the same order, on every reading.

    A batch is normalised when it is read, so memory holds the bytes of all images and the floats
    of one batch. `mean` and `std` are in units of pixel / 255, one value for each plane or one
    for all; with `bgr` the planes are reversed first and the values belong to B, G, R.

    Raises:
        SelectorError: If the batch size, `mean` or `std` cannot be used with these images.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        batch_size: int = 128,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        bgr: bool = False,
    ) -> None:
        """Keep the images and check that the normalisation fits them."""
        _check_normalisation(data.images.shape[1], batch_size, mean, std, bgr)
        self.data = data
        self.batch_size = batch_size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.bgr = bgr

    def __len__(self) -> int:
        """Return the number of batches; the last one may be smaller."""
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs float32 of shape (batch, channels, height, width), targets int64)."""
        images = torch.split(self.data.images, self.batch_size)
        labels = torch.split(self.data.labels, self.batch_size)
        for pixels, targets in zip(images, labels, strict=True):
            planes = pixels.flip(1) if self.bgr else pixels
            yield normalised(planes, self.mean, self.std), targets

    def subset(self, indices: Tensor) -> "TensorBatches":
        """Return the same kind of batches over the images at `indices` only, in that order."""
        return TensorBatches(
            self.data.subset(indices),
            batch_size=self.batch_size,
            mean=self.mean,
            std=self.std,
            bgr=self.bgr,
        )


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (pixels / 255 - mean) / std as float32, the same shape; pixels are uint8, 0..255."""
    scale = 1.0 / (255.0 * torch.tensor(std))
    shift = -torch.tensor(mean) / torch.tensor(std)
    return pixels.float().mul_(scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1))


class UnlabelledBatches:
    """Normalised batches of images without labels: (inputs, None), the same on every reading.

    Args:
        images: Pixels 0..255, uint8, shape (images, channels, height, width).
        batch_size: Images in a batch.
        mean: As for `TensorBatches`.
        std: As for `TensorBatches`.
        bgr: As for `TensorBatches`.

    Raises:
        SelectorError: If the batch size, `mean` or `std` cannot be used with these images.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        batch_size: int = 128,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        bgr: bool = False,
    ) -> None:
        _check_normalisation(images.shape[1], batch_size, mean, std, bgr)
        self.images = images
        self.batch_size, self.bgr = batch_size, bgr
        self.mean, self.std = tuple(mean), tuple(std)

    def __len__(self) -> int:
        """Return the number of batches; the last one may be smaller."""
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, None]]:
        """Yield (inputs float32 of shape (batch, channels, height, width), None)."""
        for pixels in torch.split(self.images, self.batch_size):
            yield normalised(pixels.flip(1) if self.bgr else pixels, self.mean, self.std), None


def _check_normalisation(
    channels: int, batch_size: int, mean: Sequence[float], std: Sequence[float], bgr: bool
) -> None:
    """Refuse batch sizes and normalisations that do not fit images of so many channels."""
    if batch_size < 1:
        raise SelectorError(f"batch_size is {batch_size}; it must be at least 1")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise SelectorError(
                f"{name} has {len(values)} values but the images have {channels} channels; "
                f"give {channels} values, or one for all"
            )
    if min(std) <= 0:
        raise SelectorError(f"std is {tuple(std)}; every value must be above 0")
    if bgr and channels != 3:
        raise SelectorError(f"bgr needs images of 3 channels, these have {channels}")
