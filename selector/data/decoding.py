"""Encoded images -> pixels of 8 bits, one by one and stacked."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from selector.errors import SelectorError

Pixels = npt.NDArray[np.uint8]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, by plain decoders: EPS, for one, would be run by Ghostscript."""
MOST_PIXELS = 2**26
"""Of an image as it stands in its file, and as it is resized: 8192 x 8192."""
MOST_BYTES = 2**35
"""Of all images together, decoded."""
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
"""Pillow opens their images of 16 bits as 32-bit integers, in the range of 16 bits."""


def decoded(encoded: bytes, size: int | None, where: str, channels: int = 3) -> Pixels:
    """Pixels of an encoded image, uint8 of shape (height, width, channels).

    Args:
        encoded: The content of an image file.
        size: See `fitted`.
        where: What errors name.
        channels: 3 for red, green and blue; 1 for brightness alone.

    Raises:
        SelectorError: No image that can be read, or one whose pixels have no known range.
    """
    try:
        # Size and format stand in the first bytes: nothing is decoded before both are fine.
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            _check_pixels(*image.size, where)
            mode = "L" if channels == 1 else "RGB"
            pixels = np.asarray(fitted(_of_8_bits(image, where).convert(mode), size, where))
            return pixels.reshape(*pixels.shape[:2], channels)
    except SelectorError:
        raise
    except Exception as error:  # Damaged files raise almost anything.
        raise SelectorError(f"{where} is not a readable image: {error}") from error


def _check_pixels(width: int, height: int, where: str) -> None:
    if width * height > MOST_PIXELS:
        raise SelectorError(
            f"{where} has {width}x{height} pixels, and {MOST_PIXELS} are the most; make it smaller"
        )


def _of_8_bits(image: Image.Image, where: str) -> Image.Image:
    """The image in a mode of 8 bits a plane; Pillow's own conversion would cut off, not scale."""
    sixteen = image.mode.startswith("I;16")
    if sixteen or (image.mode == "I" and image.format in SIXTEEN_BIT_FORMATS):
        values: npt.NDArray[Any] = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise SelectorError(
            f"{where} has pixels that are {kind}, whose range is not known; scale them to 0..255 "
            "and save them with 8 bits"
        )
    return image


def fitted(image: Image.Image, size: int | None, where: str = "the image") -> Image.Image:
    """Return the image with its shorter side resized to `size` (bilinear) and its centre cropped.

    An image that has this size already, or `size=None`, passes through untouched.
    """
    if size is None or image.size == (size, size):
        return image
    width, height = image.size
    scale = size / min(width, height)
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    _check_pixels(wide, high, f"{where}, resized,")
    left, top = (wide - size) // 2, (high - size) // 2
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


class UnequalSizesError(SelectorError):
    """Images of several sizes, where none was named that all are to have."""


class PixelStack:
    """Decoded images gathered into one array, which the first image sizes."""

    def __init__(self, count: int, size: int | None, source: str, channels: int = 3) -> None:
        """Expect `count` images; `source` is the file or folder that errors name."""
        self._count, self._size, self._channels = count, size, channels
        self._source = source
        self._array: Pixels | None = None
        self._filled = 0

    def add(self, encoded: object, where: str) -> None:
        """Decode one image; `where` names it in errors."""
        if not isinstance(encoded, bytes):
            raise SelectorError(
                f"{self._source}: {where} holds no image bytes but {type(encoded).__name__}"
            )
        pixels = decoded(encoded, self._size, f"{self._source}: {where}", self._channels)
        if self._array is None:
            if self._count * pixels.size > MOST_BYTES:
                raise SelectorError(
                    f"{self._source}: {self._count} images of {pixels.shape[1]}x{pixels.shape[0]} "
                    f"pixels take more than {MOST_BYTES >> 30} GiB; give limit=... or a smaller "
                    "size=..."
                )
            self._array = np.empty((self._count, *pixels.shape), dtype=np.uint8)
        if pixels.shape != self._array.shape[1:]:
            (high, wide), (h, w) = self._array.shape[1:3], pixels.shape[:2]
            raise UnequalSizesError(
                f"{self._source}: {where} is {w}x{h} pixels but the first image is {wide}x{high}; "
                "give size=... to resize and crop all to one size"
            )
        self._array[self._filled] = pixels
        self._filled += 1

    def images(self) -> Tensor:
        """Return all images, uint8 of shape (images, channels, height, width)."""
        assert self._array is not None
        assert self._filled == self._count
        return torch.from_numpy(self._array).permute(0, 3, 1, 2).contiguous()
