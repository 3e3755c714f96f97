"""Encoded images -> pixels of 8 bits."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from selector.errors import SelectorError

Pixels = npt.NDArray[np.uint8]

SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
"""Pillow opens their images of 16 bits as 32-bit integers, in the range of 16 bits."""


def decoded(encoded: bytes, size: int | None, where: str) -> Pixels:
    """Pixels of an encoded image, uint8 of shape (height, width, 3).

    Args:
        encoded: The content of an image file.
        size: See `fitted`.
        where: What errors name.

    Raises:
        SelectorError: No image that can be read, or one whose pixels have no known range.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(fitted(_of_8_bits(image, where).convert("RGB"), size))
    except SelectorError:
        raise
    except Exception as error:  # Damaged files raise almost anything.
        raise SelectorError(f"{where} is not a readable image: {error}") from error


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


def fitted(image: Image.Image, size: int | None) -> Image.Image:
    """Return the image with its shorter side resized to `size` (bilinear) and its centre cropped.

    An image that has this size already, or `size=None`, passes through untouched.
    """
    if size is None or image.size == (size, size):
        return image
    width, height = image.size
    scale = size / min(width, height)
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (wide - size) // 2, (high - size) // 2
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))
