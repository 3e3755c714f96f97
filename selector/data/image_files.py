"""Labelled images from a Parquet file or an image folder."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from selector.data.decoding import decoded
from selector.data.image_data import ImageData as ImageData
from selector.errors import SelectorError

IMAGE_SUFFIXES = frozenset(
    [
        ".bmp",
        ".gif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
IGNORED_FOLDERS = frozenset({"__MACOSX", "__pycache__", "@eaDir", "lost+found"})
"""Left by archives and programs; whatever begins with a dot is ignored as well."""
MOST_CLASSES = 10**6
_ROWS_PER_READ = 512


def read_images(
    path: str | Path, *, limit: int | None = None, size: int | None = None
) -> ImageData:
    """Read labelled images from a Parquet file, or from a folder with a folder for each class.

    Images of 16 bits are scaled to 0..255; those of 32 bits or floats have no known range and are
    refused.

    Args:
        path: The file or folder; see `read_parquet` and `read_folder`.
        limit: Largest number of images to read; all by default.
        size: Resize the shorter side to this many pixels (bilinear) and crop the centre.

    Returns:
        `images`, uint8 of shape (images, 3, height, width); `labels`, int64; and `classes`.
        `selector.data.image_data.TensorBatches` makes normalised batches of them.

    Raises:
        SelectorError: Nothing there, or an image, label or class that is unusable.
    """
    reader = read_folder if Path(path).is_dir() else read_parquet
    return reader(path, limit=limit, size=size)


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
    file = _open_parquet(Path(path))
    stop = file.metadata.num_rows if limit is None else offset + limit
    count = min(stop, file.metadata.num_rows) - offset
    if count <= 0:
        raise SelectorError(f"{path}: no rows from {offset} on; it has {file.metadata.num_rows}")
    pixels = _Pixels(count, size, str(path))
    labels: list[int] = []
    for row, encoded, label in _rows(Path(path), file, offset, offset + count):
        if not isinstance(label, int) or label < 0:
            raise SelectorError(
                f"{path}: row {row} has label {label!r}; labels must be whole numbers from 0"
            )
        pixels.add(encoded, f"row {row}")
        labels.append(int(label))
    if max(labels) >= MOST_CLASSES:
        raise SelectorError(
            f"{path}: labels reach {max(labels)}; they must be the numbers of classes, from 0"
        )
    names = _class_names(path, file) or tuple(str(label) for label in range(max(labels) + 1))
    if max(labels) >= len(names):
        raise SelectorError(
            f"{path}: labels reach {max(labels)}, but the metadata key 'classes' names only "
            f"{len(names)} classes; name them all, one a line, or drop the key"
        )
    return ImageData(pixels.images(), torch.tensor(labels), names)


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
    root = Path(path)
    if not root.is_dir():
        raise SelectorError(f"{path}: no such folder")
    try:
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not _is_ignored(p.name))
        files = [_image_files(folder) for folder in folders]
    except OSError as error:
        raise SelectorError(f"{path} cannot be read: {error}") from error
    if not any(files):
        raise SelectorError(f"{path}: no images; expected one folder of images for each class")
    for folder, some in zip(folders, files, strict=True):
        if not some:
            raise SelectorError(
                f"{path}: the folder {folder.name!r} holds no images, and every folder is a class; "
                f"images are files ending in {', '.join(sorted(IMAGE_SUFFIXES))}; fill or move it"
            )
    turns = [
        (turn, label, file) for label, some in enumerate(files) for turn, file in enumerate(some)
    ]
    chosen = sorted(turns)[:limit]
    pixels = _Pixels(len(chosen), size, str(path))
    for _, _, file in chosen:
        pixels.add(_content(file, root), str(file.relative_to(root)))
    labels = torch.tensor([label for _, label, _ in chosen])
    return ImageData(pixels.images(), labels, tuple(folder.name for folder in folders))


class _Pixels:
    """Decoded images gathered into one array, which the first image sizes."""

    def __init__(self, count: int, size: int | None, source: str) -> None:
        """Expect `count` images; `source` is the file or folder that errors name."""
        self._count = count
        self._size = size
        self._source = source
        self._array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None = None
        self._filled = 0

    def add(self, encoded: object, where: str) -> None:
        """Decode one image; `where` names it in errors."""
        if not isinstance(encoded, bytes):
            raise SelectorError(
                f"{self._source}: {where} holds no image bytes but {type(encoded).__name__}"
            )
        pixels = decoded(encoded, self._size, f"{self._source}: {where}")
        if self._array is None:
            self._array = np.empty((self._count, *pixels.shape), dtype=np.uint8)
        if pixels.shape != self._array.shape[1:]:
            (high, wide), (h, w) = self._array.shape[1:3], pixels.shape[:2]
            raise SelectorError(
                f"{self._source}: {where} is {w}x{h} pixels but the first image is {wide}x{high}; "
                "give size=... to resize and crop all to one size"
            )
        self._array[self._filled] = pixels
        self._filled += 1

    def images(self) -> Tensor:
        """Return all images, uint8 of shape (images, 3, height, width)."""
        assert self._array is not None
        assert self._filled == self._count
        return torch.from_numpy(self._array).permute(0, 3, 1, 2).contiguous()


def _open_parquet(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise SelectorError(f"{path}: no such file")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise SelectorError(f"{path} is not a Parquet file: {error}") from error
    missing = {"image", "label"} - set(file.schema_arrow.names)
    if missing:
        raise SelectorError(
            f"{path} has no column {' and no column '.join(sorted(missing))}; "
            f"it has: {', '.join(file.schema_arrow.names)}"
        )
    return file


def _rows(
    path: Path, file: pq.ParquetFile, start: int, stop: int
) -> Iterator[tuple[int, object, object]]:
    """Yield (row, encoded image, label) for the rows start..stop, reading no other row group."""
    wanted: list[int] = []
    row = first = 0
    for group in range(file.metadata.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        if first < stop and end > start:
            row = row if wanted else first
            wanted.append(group)
        first = end
    for batch in _batches(path, file, wanted):
        skip, take = max(0, start - row), min(batch.num_rows, stop - row)
        part = batch.slice(skip, max(0, take - skip))
        images, labels = part.column("image").to_pylist(), part.column("label").to_pylist()
        for number, (image, label) in enumerate(zip(images, labels, strict=True), row + skip):
            yield number, image["bytes"] if isinstance(image, dict) else image, label
        row += batch.num_rows
        if row >= stop:
            return


def _batches(path: Path, file: pq.ParquetFile, groups: list[int]) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(
            batch_size=_ROWS_PER_READ, row_groups=groups, columns=["image", "label"]
        )
    except (pa.ArrowException, OSError) as error:
        raise SelectorError(f"{path} cannot be read: {error}") from error


def _class_names(path: str | Path, file: pq.ParquetFile) -> tuple[str, ...]:
    try:
        text = (file.schema_arrow.metadata or {}).get(b"classes", b"").decode()
    except UnicodeDecodeError as error:
        raise SelectorError(f"{path}: the metadata key 'classes' is not text: {error}") from error
    return tuple(text.splitlines())


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in IGNORED_FOLDERS


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.is_dir()
        and not any(map(_is_ignored, path.relative_to(folder).parts))
    )


def _content(file: Path, root: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        why = "a link to a file that is not there" if file.is_symlink() else str(error)
        raise SelectorError(f"{root}: {file.relative_to(root)} cannot be read: {why}") from error


def _check_range(limit: int | None, offset: int, size: int | None) -> None:
    if limit is not None and limit < 1:
        raise SelectorError(f"limit is {limit}; it must be at least 1, or None for all")
    if offset < 0:
        raise SelectorError(f"offset is {offset}; it must not be negative")
    if size is not None and size < 1:
        raise SelectorError(f"size is {size}; it must be at least 1, or None to keep sizes")
