"""A user's images as batches: files and folders of any kind, or batches of their own."""

import glob
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa

from selector.cli.bundles import Images
from selector.cli.inputs import made, numbers
from selector.cli.libraries import Preparation
from selector.cli.options import BATCH_SIZE, IMAGES
from selector.data.batches import Batches, check_batches
from selector.data.decoding import UnequalSizesError
from selector.data.image_data import ImageData, TensorBatches, UnlabelledBatches
from selector.data.image_files import Pictures, decode, find_rows
from selector.data.image_rows import ImageRows
from selector.data.image_tables import Columns
from selector.errors import SelectorError

LOG = logging.getLogger("selector")

HALF = (0.5,)
"""Mean and standard deviation where nobody says: pixels 0..255 become -1..1."""


def read_data(
    data: str, test_data: str | None, typed: Images, preparation: Preparation | None = None
) -> tuple[Batches, Batches | None]:
    """Batches of the images to prune with, 512 of them by default, and of all the test images.

    Args:
        data: A file, a folder, a pattern, or `package.module:factory`.
        test_data: The same, for the test images.
        typed: How images become batches, as typed.
        preparation: How the network's makers prepared images, where nothing is typed.

    Raises:
        SelectorError: Nothing there, nothing readable, or image options that would do nothing.
    """
    sources = [source for source in (data, test_data) if source is not None]
    if not any(map(_is_there, sources)):
        _refuse(typed.typed, " and ".join(sources))
    elif not _is_there(data) and typed.images is not None:
        _refuse(["--images"], data)
    how = _Reading(typed, preparation or Preparation())
    limit = IMAGES if typed.images is None else typed.images
    test = None if test_data is None else how.batches(test_data, "--test-data", None)
    return how.batches(data, "--data", limit), test


def _is_there(source: str) -> bool:
    return Path(source).exists() or glob.has_magic(source)


def _refuse(typed: Sequence[str], source: str) -> None:
    if typed and ":" in source:
        raise SelectorError(
            f"{typed[0]} does nothing to the batches of {source}; leave it out, or do it "
            "in the factory"
        )


@dataclass(frozen=True)
class _Reading:
    """How files become batches: as typed, else as the network's makers had it."""

    typed: Images
    preparation: Preparation

    def batches(self, source: str, option: str, limit: int | None) -> Batches:
        """Batches of a source, whatever it is."""
        if _is_there(source):
            return self._of_files(source, limit)
        if ":" not in source:
            raise SelectorError(
                f"{option} {source}: no such file or folder; give a folder with a folder of images "
                "per class, a Parquet or CSV file, or package.module:factory"
            )
        batches = cast(Batches, made(source, option))
        check_batches(batches)
        return batches

    def _of_files(self, source: str, limit: int | None) -> Batches:
        columns = Columns(self.typed.image_column, self.typed.label_column)
        try:
            rows = find_rows(source, columns, needed=False)
            return self._batched(self._decoded(rows, limit), source)
        except (OSError, pa.ArrowException) as error:
            raise SelectorError(f"{source} cannot be read: {error}") from error

    def _decoded(self, rows: ImageRows, limit: int | None) -> Pictures:
        """The images; at the network's usual size where they are larger, or of several sizes."""
        channels, usual = self.preparation.channels, self.preparation.size
        if self.typed.size is None and usual is not None:
            first = decode(rows, 0, 1, None, channels).images
            if min(first.shape[2:]) > usual:
                return self._resized(rows, limit, usual)
        try:
            return decode(rows, 0, limit, self.typed.size, channels)
        except UnequalSizesError:
            if usual is None:
                raise
            return self._resized(rows, limit, usual)

    def _resized(self, rows: ImageRows, limit: int | None, size: int) -> Pictures:
        LOG.info("%s: resized and cropped to %d pixels; --size for others", rows.source, size)
        return decode(rows, 0, limit, size, self.preparation.channels)

    def _batched(self, found: Pictures, source: str) -> Batches:
        typed, prepared = self.typed, self.preparation
        mean = numbers(typed.mean, "--mean") if typed.mean else prepared.mean or HALF
        std = numbers(typed.std, "--std") if typed.std else prepared.std or HALF
        size = BATCH_SIZE if typed.batch_size is None else typed.batch_size
        if found.labels is None:
            LOG.info("%s: %d images without labels", source, len(found.images))
            return UnlabelledBatches(
                found.images, batch_size=size, mean=mean, std=std, bgr=typed.bgr
            )
        data = ImageData(found.images, found.labels, found.classes)
        return TensorBatches(data, batch_size=size, mean=mean, std=std, bgr=typed.bgr)
