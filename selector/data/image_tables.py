"""Images in tables: Parquet, one file or many, and Hugging Face data sets saved to disk."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selector.data.image_rows import ImageRows, Row, content
from selector.errors import SelectorError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")
"""What columns are called, unless they are named; the first that is there is taken."""
SPLITS = ("train", "test", "validation", "valid", "val")
ROWS_PER_READ = 512

Pieces = Iterator[tuple[int, pa.RecordBatch]]
"""Parts of a table, each with the number of its first row."""


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, as asked for; None for the usual names."""

    image: str | None = None
    label: str | None = None

    def named(self, source: object, schema: pa.Schema, *, needed: bool) -> tuple[str, str | None]:
        """The columns of a table: of images, and of labels if there is one.

        Raises:
            SelectorError: A column that is asked for, or needed, and not there.
        """
        image = _column(source, schema, self.image, IMAGE_COLUMNS, "image_column")
        if self.label is None and not needed and not set(LABEL_COLUMNS) & set(schema.names):
            return str(image), None
        return str(image), _column(source, schema, self.label, LABEL_COLUMNS, "label_column")


def _column(
    source: object, schema: pa.Schema, asked: str | None, usual: Sequence[str], option: str
) -> str:
    found = next((n for n in ([asked] if asked else usual) if n in schema.names), None)
    if found is None:
        way_out = (
            "" if asked else f"; name the right one ({option}=..., or the option of that name)"
        )
        raise SelectorError(
            f"{source} has no column {asked or usual[0]}; it has: {', '.join(schema.names)}"
            + way_out
        )
    return found


def parquet_rows(files: Sequence[Path], columns: Columns, *, needed: bool) -> ImageRows:
    """The rows of Parquet files, one file after the other.

    Args:
        files: One or more, of the same columns.
        columns: Which hold what.
        needed: Whether there must be labels.

    Raises:
        SelectorError: A file or a column that is unusable.
    """
    opened = [_opened(file) for file in files]
    image, label = columns.named(files[0], opened[0].schema_arrow, needed=needed)
    wanted = [image] if label is None else [image, label]
    for file, one in zip(files, opened, strict=True):
        columns.named(file, one.schema_arrow, needed=label is not None)
    counts = [one.metadata.num_rows for one in opened]

    def pieces(number: int, start: int, stop: int) -> Pieces:
        return _row_groups(files[number], opened[number], wanted, start, stop)

    source = str(files[0] if len(files) == 1 else files[0].parent)
    schema = opened[0].schema_arrow
    classes = class_names(files[0], schema, label)
    if label is not None and classes is None and _is_text(schema.field(label).type):
        classes = _texts(pq.read_table(file, columns=[label])[label] for file in files)
    rows = _table_reader(source, files, counts, pieces, image, label)
    return ImageRows(source, sum(counts), rows, classes, label is not None)


def arrow_rows(folder: Path, columns: Columns, *, needed: bool) -> ImageRows:
    """The rows of a Hugging Face data set that `save_to_disk` wrote.

    Args:
        folder: It holds `state.json` and Arrow files.
        columns: Which hold what.
        needed: Whether there must be labels.

    Raises:
        SelectorError: A file or a column that is unusable.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / str(one["filename"]) for one in state["_data_files"]]
        tables = [_arrow_table(file) for file in files]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise SelectorError(f"{folder} cannot be read as a saved data set: {error}") from error
    if not tables:
        raise SelectorError(f"{folder}: no rows from 0 on; it has 0")
    image, label = columns.named(folder, tables[0].schema, needed=needed)
    classes = class_names(folder, tables[0].schema, label)
    if label is not None and classes is None and _is_text(tables[0].schema.field(label).type):
        classes = _texts(table[label] for table in tables)

    def pieces(number: int, start: int, stop: int) -> Pieces:
        first = start
        for batch in tables[number].slice(start, stop - start).to_batches(ROWS_PER_READ):
            yield first, batch
            first += batch.num_rows

    counts = [table.num_rows for table in tables]
    rows = _table_reader(str(folder), files, counts, pieces, image, label)
    return ImageRows(str(folder), sum(counts), rows, classes, label is not None)


def _arrow_table(file: Path) -> Any:
    with pa.memory_map(str(file)) as mapped:
        return pa.ipc.open_stream(mapped).read_all()


def _table_reader(
    source: str,
    files: Sequence[Path],
    counts: Sequence[int],
    pieces: Callable[[int, int, int], Pieces],
    image: str,
    label: str | None,
) -> Callable[[int, int], Iterator[Row]]:
    """What reads rows across files; a single file's rows are named by their numbers alone."""

    def read(start: int, stop: int) -> Iterator[Row]:
        first = 0
        for number, (file, count) in enumerate(zip(files, counts, strict=True)):
            low, high = max(0, start - first), min(count, stop - first)
            prefix = "" if len(files) == 1 else f"{file.name}: "
            if low < high:
                for begin, batch in pieces(number, low, high):
                    images = batch.column(image).to_pylist()
                    labels = [None] * len(images) if label is None else batch.column(label)
                    for place, (one, other) in enumerate(zip(images, labels, strict=True), begin):
                        where = f"{prefix}row {place}"
                        yield Row(where, _encoded(one, file, source), _plain(other))
            first += count

    return read


def _encoded(value: object, file: Path, source: str) -> object:
    """The content of an image: as it is, or of a structure with `bytes`, or with a `path` alone."""
    if isinstance(value, dict):
        path = value.get("path")
        if value.get("bytes") is None and path:
            return content(file.parent / str(path), source)
        return value.get("bytes")
    return value


def _plain(value: object) -> object:
    return value.as_py() if isinstance(value, pa.Scalar) else value


def _opened(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise SelectorError(f"{path}: no such file")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise SelectorError(f"{path} is not a Parquet file: {error}") from error


def _row_groups(
    path: Path, file: pq.ParquetFile, columns: list[str], start: int, stop: int
) -> Pieces:
    """The rows start..stop, reading no other row group."""
    wanted: list[int] = []
    row = first = 0
    for group in range(file.metadata.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        if first < stop and end > start:
            row = row if wanted else first
            wanted.append(group)
        first = end
    try:
        for batch in file.iter_batches(ROWS_PER_READ, row_groups=wanted, columns=columns):
            skip, take = max(0, start - row), min(batch.num_rows, stop - row)
            if take > skip:
                yield row + skip, batch.slice(skip, take - skip)
            row += batch.num_rows
            if row >= stop:
                return
    except (pa.ArrowException, OSError) as error:
        raise SelectorError(f"{path} cannot be read: {error}") from error


def class_names(path: Path, schema: pa.Schema, label: str | None) -> tuple[str, ...] | None:
    """Names of the classes that a table's metadata gives: under `classes`, or Hugging Face's.

    Raises:
        SelectorError: Names that are no text.
    """
    metadata = schema.metadata or {}
    try:
        text = metadata.get(b"classes", b"").decode()
        features = json.loads(metadata.get(b"huggingface", b"{}"))
    except (UnicodeDecodeError, ValueError) as error:
        raise SelectorError(f"{path}: the metadata key 'classes' is not text: {error}") from error
    if text:
        return tuple(text.splitlines())
    try:
        names = features["info"]["features"][label]["names"]
    except (KeyError, TypeError):
        return None
    return tuple(map(str, names))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _texts(columns: Iterator[Any]) -> tuple[str, ...]:
    """Names in columns of text, each once, sorted: their places are the numbers of the classes."""
    found: set[str] = set()
    for column in columns:
        found.update(str(name) for name in column.unique().to_pylist() if name is not None)
    return tuple(sorted(found))
