"""Parquet tables of records: read with every fault named, as rows of plain values and arrays."""

import gc
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selector.errors import SelectorError

VERSION = b"schema_version"
PROVENANCE = b"provenance"


def read_table(path: Path, readable: Sequence[str]) -> pa.Table:
    """Read a table of ours, checksums included.

    Raises:
        SelectorError: Absent, truncated or damaged, or of a schema version that is not readable.
    """
    try:
        # Not `pq.read_table`, which looks for a data set of many files first: ten times slower.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
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


def version_of(table: pa.Table) -> str:
    """The schema version that a table names, or `none`."""
    found: bytes = (table.schema.metadata or {}).get(VERSION, b"none")
    return found.decode(errors="replace")


def provenance_of(table: pa.Table) -> dict[str, object]:
    """Where a table says that it comes from.

    Raises:
        KeyError: It does not say.
        ValueError: It is not a JSON object.
    """
    found = json.loads(table.schema.metadata[PROVENANCE])
    if not isinstance(found, dict):
        raise ValueError(f"its provenance is a {type(found).__name__}, not an object")
    return found


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
        # The few names of a column are made once, not once a row.
        return [v for chunk in column.dictionary_encode().chunks for v in _names(chunk)]
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


def forget_partial(root: Path, network: str) -> None:
    """Remove what runs that were killed while they wrote a network left behind."""
    pattern = re.compile(rf"\.{re.escape(network)}\.\w{{8}}")
    for path in root.iterdir():
        if pattern.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


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
