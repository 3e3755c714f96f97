"""Images from files and folders of any kind, decoded: `read_images`."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from selector.data.decoding import PixelStack
from selector.data.image_data import ImageData as ImageData
from selector.data.image_lists import csv_rows
from selector.data.image_rows import ImageRows, flat_rows, folder_rows
from selector.data.image_tables import SPLITS, Columns, arrow_rows, parquet_rows
from selector.errors import SelectorError

MOST_CLASSES = 10**6


@dataclass(frozen=True, eq=False)
class Pictures:
    """Decoded images, with their labels if they have any.

    Attributes:
        images: Pixels 0..255, uint8, shape (images, channels, height, width).
        labels: Class numbers, int64, shape (images,); None without labels.
        classes: One name for each class number; empty without labels.
    """

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]


def read_images(
    path: str | Path,
    *,
    limit: int | None = None,
    size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    channels: int = 3,
) -> ImageData:
    """Read labelled images: a folder of classes, Parquet, CSV, or a saved Hugging Face data set.

    Images of 16 bits are scaled to 0..255; those of 32 bits or floats have no known range and are
    refused. Labels are whole numbers from 0, or names, which are numbered in alphabetical order.

    Args:
        path: A folder with a folder of images for each class; a Parquet file, a folder of them, or
            a pattern such as `data/train-*.parquet`; a CSV file that lists paths and labels; or a
            folder that `save_to_disk` of Hugging Face's `datasets` wrote.
        limit: Largest number of images to read; all by default.
        size: Resize the shorter side to this many pixels (bilinear) and crop the centre.
        image_column: Of a table: encoded files as bytes, or structures with `bytes` or `path`; of a
            CSV file: paths. `image` by default, `path` in a CSV file.
        label_column: `label` by default.
        channels: 3, or 1 for brightness alone.

    Returns:
        `images`, uint8 of shape (images, channels, height, width); `labels`, int64; and `classes`.
        `selector.data.image_data.TensorBatches` makes normalised batches of them.

    Raises:
        SelectorError: Nothing there, or an image, label or class that is unusable.
    """
    _check_range(limit, 0, size)
    rows = find_rows(path, Columns(image_column, label_column), needed=True)
    return _labelled(decode(rows, 0, limit, size, channels))


def read_parquet(
    path: str | Path, *, limit: int | None = None, offset: int = 0, size: int | None = None
) -> ImageData:
    """Read labelled images from a Parquet file, decoding only the rows asked for.

    The column `image` holds encoded files as bytes (or structs with a field `bytes`), `label`
    whole numbers from 0. The schema metadata may name the classes under `classes`, one a line.

    Args:
        path: The Parquet file.
        limit: Largest number of rows to read; all by default.
        offset: Number of rows to skip first.
        size: Resize the shorter side to this many pixels (bilinear) and crop the centre.

    Raises:
        SelectorError: If the file, a column, a row or the requested range is unusable.
    """
    _check_range(limit, offset, size)
    rows = parquet_rows([Path(path)], Columns(), needed=True)
    return _labelled(decode(rows, offset, limit, size))


def read_folder(
    path: str | Path, *, limit: int | None = None, size: int | None = None
) -> ImageData:
    """Read labelled images from a folder that holds one folder of images for each class.

    Classes are sorted by name and files by name within a class; the images then take turns, one
    of each class, so that the first `limit` of them, and every batch, hold all classes. Files and
    folders whose names begin with a dot, and those of `IGNORED_FOLDERS`, are ignored.

    Args:
        path: The folder.
        limit: Largest number of images to read; all by default.
        size: Resize the shorter side to this many pixels (bilinear) and crop the centre.

    Raises:
        SelectorError: If the folder, a class or an image is unusable.
    """
    _check_range(limit, 0, size)
    return _labelled(decode(folder_rows(Path(path)), 0, limit, size))


def find_rows(path: str | Path, columns: Columns, *, needed: bool) -> ImageRows:
    """The images at a path, whatever lies there, undecoded.

    Args:
        path: As `read_images` takes it.
        columns: Of tables.
        needed: Whether there must be labels.

    Raises:
        SelectorError: Nothing there, or nothing that is known.
    """
    if not Path(path).exists() and glob.has_magic(str(path)):
        found = sorted(Path(file) for file in glob.glob(str(path)))
        if not found:
            raise SelectorError(f"{path}: no file has such a name")
        return parquet_rows(found, columns, needed=needed)
    place = Path(path)
    if place.is_dir():
        return _in_folder(place, columns, needed=needed)
    if place.suffix.lower() in (".csv", ".tsv"):
        return csv_rows(place, columns, needed=needed)
    return parquet_rows([place], columns, needed=needed)


def _in_folder(folder: Path, columns: Columns, *, needed: bool) -> ImageRows:
    """What a folder holds: a saved data set, Parquet files, images, or a folder for each class."""
    if (folder / "state.json").is_file():
        return arrow_rows(folder, columns, needed=needed)
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(one.parent.name for one in folder.glob("*/state.json"))
        raise SelectorError(
            f"{folder} holds a data set in several parts; name one of them: "
            f"{', '.join(str(folder / name) for name in splits)}"
        )
    tables = sorted(folder.glob("*.parquet"))
    if tables:
        _check_one_split(folder, tables)
        return parquet_rows(tables, columns, needed=needed)
    flat = None if needed else flat_rows(folder)
    return folder_rows(folder) if flat is None else flat


def _check_one_split(folder: Path, tables: Sequence[Path]) -> None:
    """Refuse to take training and test images together."""
    splits = {name for table in tables for name in SPLITS if table.stem.split("-")[0] == name}
    if len(splits) > 1:
        raise SelectorError(
            f"{folder} holds Parquet files of {' and '.join(sorted(splits))}; name one part by a "
            f"pattern: '{folder}/{min(splits)}*.parquet'"
        )


def decode(
    rows: ImageRows, start: int, limit: int | None, size: int | None, channels: int = 3
) -> Pictures:
    """Decode some rows.

    Args:
        rows: Encoded images.
        start: The first row.
        limit: Largest number of rows; all by default.
        size: See `read_images`.
        channels: 1 or 3.

    Raises:
        SelectorError: No such rows, or an image or a label that is unusable.
    """
    stop = rows.count if limit is None else min(rows.count, start + limit)
    if stop <= start:
        raise SelectorError(f"{rows.source}: no rows from {start} on; it has {rows.count}")
    pixels = PixelStack(stop - start, size, rows.source, channels)
    numbers = {name: number for number, name in enumerate(rows.classes or ())}
    labels: list[int] = []
    for row in rows.read(start, stop):
        label = numbers.get(row.label, row.label) if isinstance(row.label, str) else row.label
        if rows.labelled:
            if not isinstance(label, int) or label < 0:
                raise SelectorError(
                    f"{rows.source}: {row.where} has label {label!r}; labels must be whole numbers "
                    "from 0, or names"
                )
            labels.append(int(label))
        pixels.add(row.encoded, row.where)
    if not rows.labelled:
        return Pictures(pixels.images(), None, ())
    return Pictures(pixels.images(), torch.tensor(labels), _classes(rows, max(labels)))


def _classes(rows: ImageRows, highest: int) -> tuple[str, ...]:
    """Names of the classes; their numbers where nothing names them.

    Raises:
        SelectorError: Labels that are no classes.
    """
    if highest >= MOST_CLASSES:
        raise SelectorError(
            f"{rows.source}: labels reach {highest}; they must be the numbers of classes, from 0"
        )
    names = rows.classes or tuple(str(label) for label in range(highest + 1))
    if highest >= len(names):
        raise SelectorError(
            f"{rows.source}: labels reach {highest}, but the metadata names only {len(names)} "
            "classes; name them all, or drop the names"
        )
    return names


def _labelled(found: Pictures) -> ImageData:
    assert found.labels is not None
    return ImageData(found.images, found.labels, found.classes)


def _check_range(limit: int | None, offset: int, size: int | None) -> None:
    if limit is not None and limit < 1:
        raise SelectorError(f"limit is {limit}; it must be at least 1, or None for all")
    if offset < 0:
        raise SelectorError(f"offset is {offset}; it must not be negative")
    if size is not None and size < 1:
        raise SelectorError(f"size is {size}; it must be at least 1, or None to keep sizes")
