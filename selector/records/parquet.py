"""Parquet tables of records: read with every fault named, as rows of plain values and arrays."""

import gc
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selector.errors import SelectorError
from selector.records.layout import NAMES

VERSION = b"schema_version"
PROVENANCE = b"provenance"
CHECKSUM = b"sha256"
"""Of the provenance."""
MOST_ROWS, MOST_COLUMNS, MOST_VALUES = 20_000_000, 1000, 2**28
"""Of a table of one network."""


def read_table(path: Path, readable: Sequence[str], names: Sequence[str]) -> pa.Table:
    """Read a table of ours, checksums included.

    Args:
        path: The file.
        readable: Schema versions.
        names: Columns that hold few different texts, each kept once.

    Raises:
        SelectorError: Absent, truncated or damaged, or of a schema version that is not readable.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")
        # Not `pq.read_table`, which looks for a data set of many files first: ten times slower.
        # From memory, since Arrow hands each piece of a file on disk to another thread.
        with _opened(pa.BufferReader(path.read_bytes()), names) as file:
            _check_size(file.metadata)
            table = file.read(use_threads=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SelectorError(f"{path} cannot be read as Parquet: {error}") from error
    version = version_of(table)
    if version not in readable:
        raise SelectorError(
            f"{path} has records schema {version}, this version reads {', '.join(readable)}; "
            "record the network again"
        )
    return table


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as all tables of ours are: compressed, with a checksum of every page.

    Only names are worth a dictionary, and nobody asks for the least and the largest of a column:
    without, a small file is read in three quarters of the time.

    Raises:
        OSError: It cannot be written.
    """
    pq.write_table(
        table,
        path,
        compression="zstd",
        use_dictionary=NAMES,
        write_statistics=False,
        write_page_checksum=True,
    )


def _opened(source: pa.BufferReader, names: Sequence[str]) -> pq.ParquetFile:
    """An open file whose columns of names are read as numbers of names."""
    try:
        return pq.ParquetFile(source, page_checksum_verification=True, read_dictionary=names)
    except KeyError:  # Another file's columns; what is missing is said by who reads them.
        source.seek(0)
        return pq.ParquetFile(source, page_checksum_verification=True)


def rows_in(path: Path) -> int:
    """How many rows a table says that it has; 0 where it cannot be read."""
    try:
        with pq.ParquetFile(path) as file:
            return max(0, int(file.metadata.num_rows))
    except (OSError, ValueError, pa.ArrowException):
        return 0


def _check_size(about: pq.FileMetaData) -> None:
    """Refuse tables that no network has, before memory is asked for.

    Raises:
        ValueError: Too many rows, columns or numbers; they say so themselves.
    """
    if about.num_rows > MOST_ROWS or about.num_columns > MOST_COLUMNS:
        raise ValueError(
            f"it has {about.num_rows} rows and {about.num_columns} columns; {MOST_ROWS} and "
            f"{MOST_COLUMNS} are the most"
        )
    chunks = [
        about.row_group(group).column(column)
        for group in range(about.num_row_groups)
        for column in range(about.num_columns)
    ]
    values = sum(chunk.num_values for chunk in chunks)
    size = sum(chunk.total_uncompressed_size for chunk in chunks)
    if (
        values > MOST_VALUES
        or size > 8 * MOST_VALUES
        or min((c.num_values for c in chunks), default=0) < 0
    ):
        raise ValueError(f"it holds {values} numbers in {size} bytes; {MOST_VALUES} are the most")


def version_of(table: pa.Table) -> str:
    """The schema version that a table names, or `none`."""
    found: bytes = (table.schema.metadata or {}).get(VERSION, b"none")
    return found.decode(errors="replace")


def provenance_of(table: pa.Table) -> dict[str, object]:
    """Where a table says that it comes from.

    Raises:
        KeyError: It does not say.
        ValueError: It is not a JSON object, or not the one that was written.
    """
    text: bytes = table.schema.metadata[PROVENANCE]
    # Pages of a table have checksums of their own; tables of earlier versions have only those.
    if table.schema.metadata.get(CHECKSUM, digest := _digest(text)) != digest:
        raise ValueError("the checksum of its provenance does not fit; copy the folder again")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"its provenance is a {type(found).__name__}, not an object")
    return found


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def rows_of(table: pa.Table) -> list[dict[str, object]]:
    """Rows as mappings by column; lists of numbers come as arrays, which is what takes the time."""
    columns = {name: _values(table.column(name)) for name in table.column_names}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def tuples_of(table: pa.Table, names: Sequence[str]) -> Iterator[tuple[object, ...]]:
    """Rows as tuples of some columns; a column that the table lacks is None throughout."""
    there = set(table.column_names)
    columns = [
        _values(table.column(name)) if name in there else [None] * table.num_rows for name in names
    ]
    return zip(*columns, strict=True)


def _values(column: pa.ChunkedArray) -> Sequence[object]:
    if pa.types.is_list(column.type):
        return [array for chunk in column.chunks for array in _arrays(chunk)]
    if pa.types.is_string(column.type):
        column = column.dictionary_encode()
    if pa.types.is_dictionary(column.type):
        # The few names of a column are made once, not once a row.
        return [v for chunk in column.chunks for v in _names(chunk)]
    if column.null_count == 0 and pa.types.is_primitive(column.type):
        # Five times as fast as value by value.
        numbers: list[object] = column.to_numpy().tolist()
        return numbers
    values: Sequence[object] = column.to_pylist()
    return values


def _names(chunk: pa.DictionaryArray) -> list[object]:
    names = chunk.dictionary.to_pylist()
    return [None if place is None else names[place] for place in chunk.indices.to_pylist()]


def _arrays(chunk: pa.ListArray) -> Iterator[object]:
    # A copy, since Arrow's own memory cannot be written to, which PyTorch warns of.
    numbers = np.array(chunk.values.to_numpy(zero_copy_only=False))
    bounds = chunk.offsets.to_numpy()
    there = np.asarray(chunk.is_valid())
    for known, start, stop in zip(there.tolist(), bounds[:-1], bounds[1:], strict=True):
        yield numbers[start:stop] if known else None


@contextmanager
def many_objects() -> Iterator[None]:
    """Context in which objects are made by the hundred thousand: Python does not look for cycles.

    Looking through all objects again and again takes half of the time, and there are none.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def folders_with(root: Path, names: Sequence[str]) -> list[Path]:
    """The folders below (or at) `root` that hold one of some files; a leading dot: not yet whole.

    Whoever is killed while writing leaves a folder with a dot behind.
    """
    found = {path.parent for name in names for path in root.rglob(name)}
    return sorted(
        folder
        for folder in found
        if not any(part.startswith(".") for part in folder.relative_to(root).parts)
    )


def check_versions(root: Path, names: Sequence[str], version: str) -> None:
    """Make sure that records can be added to a folder: those in it have the same schema version.

    Raises:
        SelectorError: They have another one, or cannot be read; the first folder is named.
    """
    for folder in folders_with(root, names) if root.is_dir() else ():
        path = folder / names[0]
        try:
            found = (pq.read_schema(path).metadata or {}).get(VERSION, b"none").decode()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise SelectorError(f"{path} cannot be read as Parquet: {error}") from error
        if found != version:
            raise SelectorError(
                f"{folder} has records schema {found}, new records have {version}; they do not "
                "mix: name another folder, or move the old records away"
            )
