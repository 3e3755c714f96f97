"""Folders of records, one a network: their rows made of several at a time."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields, replace
from itertools import chain, groupby
from pathlib import Path

import pyarrow as pa

from selector.errors import SelectorError
from selector.records.checks import check_measured
from selector.records.drawing import drawn
from selector.records.layout import CANDIDATES_FILE, GROUPS_FILE, NAMES, READABLE
from selector.records.measurement import CandidateRecord, GroupRecord
from selector.records.parquet import provenance_of, read_table, rows_of, tuples_of, version_of
from selector.records.provenance import Provenance, check_metrics
from selector.records.rows import group_record

TOGETHER, MOST_ROWS = 64, 2**16
"""Folders whose rows are made at once, and their candidates: for small networks, a table takes
longer than its rows."""
NEEDED = [column.name for column in fields(CandidateRecord) if column.default is MISSING]
KNOWN = [column.name for column in fields(CandidateRecord)]


@dataclass(frozen=True, eq=False)
class Recording:
    """A network's folder as it was read, with no rows made yet."""

    folder: Path
    about: Provenance
    version: str
    """Of the schema."""
    groups: pa.Table
    candidates: pa.Table


Made = tuple[list[Recording], list[GroupRecord], list[CandidateRecord]]
"""Folders and what they hold: groups and candidates."""
FAULTS = (AttributeError, LookupError, TypeError, ValueError)
"""What the tables of somebody else raise."""


def read_folders(folders: Sequence[Path], share: float = 1.0, seed: int = 0) -> Iterator[Made]:
    """Read folders in their order, some at a time.

    Args:
        folders: One a network.
        share: Of each network's decisions; where it is less than 1, they are drawn.
        seed: Of what is drawn.

    Raises:
        SelectorError: A folder that holds no records of ours; it is named, with the reason.
    """
    # Not in several threads: they wait for Python's lock longer than Arrow reads.
    for batch in _batches(_read(folder, share, seed) for folder in folders):
        for _, alike in groupby(batch, lambda one: (one.groups.schema, one.candidates.schema)):
            yield from _made(list(alike))


def _batches(recordings: Iterable[Recording]) -> Iterator[list[Recording]]:
    """Recordings whose rows are made at once."""
    batch: list[Recording] = []
    rows = 0
    for one in recordings:
        batch.append(one)
        rows += one.candidates.num_rows
        if len(batch) == TOGETHER or rows > MOST_ROWS:
            yield batch
            batch, rows = [], 0
    yield batch


def _read(folder: Path, share: float, seed: int) -> Recording:
    """Both tables of a network, whole or drawn from."""
    groups = read_table(folder / GROUPS_FILE, READABLE, NAMES[:3])
    candidates = read_table(folder / CANDIDATES_FILE, READABLE, NAMES)
    with _naming(folder):
        about, version = provenance_of(groups), version_of(groups)
        if provenance_of(candidates) != about or version_of(candidates) != version:
            raise ValueError("its two files come from different recordings")
        provenance = Provenance(**about)  # type: ignore[arg-type]
        check_metrics((provenance,))
        if share < 1:
            candidates, groups = drawn(candidates, groups, share, seed)
        candidates.select(NEEDED)
        if unknown := set(candidates.column_names) - set(KNOWN):
            raise ValueError(f"unknown columns {sorted(unknown)}")
        # Without the provenance, tables of the same columns are alike.
        bare = [table.replace_schema_metadata(None) for table in (groups, candidates)]
        return Recording(folder, provenance, version, *bare)


def _made(recordings: list[Recording]) -> Iterator[Made]:
    """Rows of folders with the same columns; one after the other if they are not all right."""
    made = None
    with suppress(SelectorError, *FAULTS):
        made = _rows(recordings)
    if made is not None:
        yield made
        return
    for one in recordings:
        with _naming(one.folder):
            made = _rows([one])
        yield made


def _rows(recordings: list[Recording]) -> Made:
    """Checked rows of folders with the same columns."""
    groups = [
        group_record(row) for row in rows_of(pa.concat_tables(one.groups for one in recordings))
    ]
    table = pa.concat_tables(one.candidates for one in recordings)
    candidates = [_candidate(row) for row in tuples_of(table, KNOWN)]
    check_measured([one.about for one in recordings], groups, candidates)
    _check_owners(groups, [(one.about.network, one.groups.num_rows) for one in recordings])
    _check_owners(candidates, [(one.about.network, one.candidates.num_rows) for one in recordings])
    return recordings, groups, candidates


def _check_owners(
    rows: Iterable[GroupRecord | CandidateRecord], owners: Iterable[tuple[str, int]]
) -> None:
    """Refuse a row in the folder of another network; every folder's network and number of rows."""
    names = chain.from_iterable([network] * size for network, size in owners)
    for row, network in zip(rows, names, strict=True):
        if row.network != network:
            raise SelectorError(f"a row of {row.network!r} lies in the folder of {network!r}")


def _candidate(row: tuple[object, ...]) -> CandidateRecord:
    """A row whose set, which comes as an array, is a tuple."""
    found = CandidateRecord(*row)  # type: ignore[arg-type]
    if found.channels is None:
        return found
    return replace(found, channels=tuple(map(int, found.channels)))


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Context in which what is wrong with a folder names it.

    Raises:
        SelectorError: Something is.
    """
    try:
        yield
    except SelectorError as error:
        raise SelectorError(f"{folder} holds no records of ours: {error}") from error
    except FAULTS as error:
        raise SelectorError(f"{folder} holds no records of ours: {error!r}") from error
