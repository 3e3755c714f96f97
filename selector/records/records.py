"""Measured candidates as data: frozen, flat, versioned; Parquet files, one folder a network."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selector.errors import SelectorError
from selector.records.decision import Context, Decision, GroupFacts, GroupView
from selector.records.parquet import (
    folders_with,
    forget_partial,
    many_objects,
    provenance_of,
    read_table,
    rows_of,
    tuples_of,
    version_of,
)
from selector.records.provenance import ORIGINS, check_metrics, check_mixture
from selector.records.provenance import Provenance as Provenance
from selector.statistics.gate_fisher import MODES, Pairs
from selector.typing import Matrix

SCHEMA_VERSION = 3
READABLE = ("1", "2", "3")
"""Version 1 had the unpruned state and plain removal only, version 2 no pairs of channels; what is
missing reads as not measured."""
GROUPS_FILE = "groups.parquet"
CANDIDATES_FILE = "candidates.parquet"
FILES = (GROUPS_FILE, CANDIDATES_FILE)


@dataclass(frozen=True, eq=False)
class GroupRecord:
    """One group of a network in one state: what the selector may know of it."""

    network: str
    context: str
    """Name of the network's state: `unpruned`, or metric and share of the MACs that it has left."""
    group: str
    channels: int
    """Channels that the group has in this state."""
    facts: GroupFacts
    state: Context
    scores: Mapping[str, Matrix]
    """Metric -> raw scores of shape (channels,)."""
    pairs: Mapping[str, Pairs] = field(default_factory=dict)
    """Mode of removal -> what every two channels do together."""

    def view(self) -> GroupView:
        """The group as the selector sees it; what is derived of it lives as long as the view."""
        return GroupView(self.facts, self.state, self.scores, self.pairs)


@dataclass(frozen=True)
class CandidateRecord:
    """One arm's choice in one decision, and what it truly did to the loss."""

    network: str
    context: str
    group: str
    count: int
    """Channels removed."""
    arm: str
    set_id: int
    """Equal for arms that chose the same channels in this decision: measured once."""
    selection_nats: float
    """Loss change on the selection split."""
    selection_error: float
    """Its standard error, paired by image."""
    evaluation_nats: float
    """Loss change on the evaluation split, disjoint from the other."""
    evaluation_error: float
    compensated_selection_nats: float | None = None
    """As above, with the removed channels' means in their place; None where not measured."""
    compensated_selection_error: float | None = None
    compensated_evaluation_nats: float | None = None
    compensated_evaluation_error: float | None = None
    recalibrated_nats: float | None = None
    """On the evaluation split, after BatchNorm was recalibrated; None but for a sample."""
    recalibrated_error: float | None = None

    @property
    def nats(self) -> float:
        """Mean of the two splits, plain removal."""
        return (self.selection_nats + self.evaluation_nats) / 2


@dataclass(frozen=True, eq=False)
class Records:
    """Measurements on any number of networks."""

    networks: tuple[Provenance, ...]
    groups: tuple[GroupRecord, ...]
    candidates: tuple[CandidateRecord, ...]

    def decisions(self) -> Iterator[tuple[GroupRecord, Decision, list[CandidateRecord]]]:
        """Every decision with the candidates measured for it."""
        by_group = {(g.network, g.context, g.group): g for g in self.groups}
        views = {key: group.view() for key, group in by_group.items()}
        found: dict[tuple[str, str, str, int], list[CandidateRecord]] = {}
        for row in self.candidates:
            found.setdefault((row.network, row.context, row.group, row.count), []).append(row)
        for (network, context, name, count), rows in found.items():
            group = by_group[network, context, name]
            yield group, Decision(views[network, context, name], count), rows

    def of_networks(self, names: Iterable[str]) -> "Records":
        """Only the records of these networks."""
        kept = set(names)
        return Records(
            tuple(row for row in self.networks if row.network in kept),
            tuple(row for row in self.groups if row.network in kept),
            tuple(row for row in self.candidates if row.network in kept),
        )

    def of_origin(self, origin: str) -> "Records":
        """Only the records of networks of one of `ORIGINS`.

        Raises:
            SelectorError: The origin is unknown.
        """
        if origin not in ORIGINS:
            raise SelectorError(f"unknown origin {origin!r}; known: {', '.join(ORIGINS)}")
        return self.of_networks(p.network for p in self.networks if p.origin == origin)

    def own(self) -> "Records":
        """Only the records that a selector may learn from."""
        return self.of_origin("own")

    def __add__(self, other: "Records") -> "Records":
        """Records of both; a network may be in one of them only.

        Raises:
            SelectorError: A network is in both, or they were recorded with different metrics.
        """
        twice = {p.network for p in self.networks} & {p.network for p in other.networks}
        if twice:
            raise SelectorError(
                f"network {sorted(twice)[0]!r} is in both sets of records; give it another name"
            )
        check_metrics((*self.networks, *other.networks))
        return Records(
            self.networks + other.networks,
            self.groups + other.groups,
            self.candidates + other.candidates,
        )

    def save(self, folder: str | Path) -> None:
        """Write one folder a network, each whole or not at all.

        Raises:
            SelectorError: A network is there already; nothing is overwritten.
        """
        root = Path(folder)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SelectorError(f"{root} cannot be written: {error}") from error
        for provenance in self.networks:
            if (root / provenance.network).exists():
                raise SelectorError(
                    f"{root / provenance.network} exists; choose another network name or folder"
                )
        for provenance in self.networks:
            _write(self.of_networks([provenance.network]), provenance, root)

    @classmethod
    def load(cls, folder: str | Path) -> "Records":
        """Read a network's folder, or a folder of such folders.

        Raises:
            SelectorError: Nothing there, a file that cannot be read, another schema version, or
                networks that do not belong together.
        """
        root = Path(folder)
        found = folders_with(root, FILES)
        if not found:
            raise SelectorError(f"no records in {root}: no {CANDIDATES_FILE} below it")
        with many_objects():
            parts = {str(path): _read(path) for path in found}
        check_mixture(
            {place: (part.networks[0], version) for place, (part, version) in parts.items()}
        )
        return cls(
            tuple(p for part, _ in parts.values() for p in part.networks),
            tuple(row for part, _ in parts.values() for row in part.groups),
            tuple(row for part, _ in parts.values() for row in part.candidates),
        )


def _write(records: Records, provenance: Provenance, root: Path) -> None:
    metadata = {
        "schema_version": str(SCHEMA_VERSION),
        "provenance": json.dumps(asdict(provenance)),
    }
    forget_partial(root, provenance.network)
    partial = root / f".{provenance.network}"
    try:
        # A folder appears under its name only when both files are whole.
        partial = Path(tempfile.mkdtemp(prefix=f".{provenance.network}.", dir=root))
        os.chmod(partial, 0o755)
        groups = _as_table([_group_row(row) for row in records.groups])
        rows = _as_table([asdict(row) for row in records.candidates])
        for table, name in ((groups, GROUPS_FILE), (rows, CANDIDATES_FILE)):
            pq.write_table(
                table.replace_schema_metadata(metadata),
                partial / name,
                compression="zstd",
                write_page_checksum=True,
            )
        partial.rename(root / provenance.network)
    except OSError as error:
        raise SelectorError(f"{root / provenance.network} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _as_table(rows: list[dict[str, object]]) -> pa.Table:
    """A table of all columns that any of the rows has: not every group has every metric."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])


def _group_row(record: GroupRecord) -> dict[str, object]:
    return {
        "network": record.network,
        "context": record.context,
        "group": record.group,
        "channels": record.channels,
        **{f"fact_{name}": value for name, value in asdict(record.facts).items()},
        **{f"state_{name}": value for name, value in asdict(record.state).items()},
        **{f"score_{name}": np.asarray(v, np.float32) for name, v in record.scores.items()},
        **{name: column for mode in record.pairs for name, column in _pair_columns(record, mode)},
    }


def _pair_columns(record: GroupRecord, mode: str) -> Iterator[tuple[str, Matrix]]:
    found = record.pairs[mode]
    yield f"pairs_{mode}_first", found.first.astype(np.float32)
    yield f"pairs_{mode}_scale", found.scale.astype(np.float32)
    yield f"pairs_{mode}_correlation", found.correlations().astype(np.float16)


def _pairs(row: Mapping[str, object]) -> dict[str, Pairs]:
    columns = ("first", "scale", "correlation")
    return {
        mode: Pairs.of_correlations(
            *(np.asarray(row[f"pairs_{mode}_{name}"], np.float64) for name in columns)
        )
        for mode in MODES
        if row.get(f"pairs_{mode}_first") is not None
    }


def _read(folder: Path) -> tuple[Records, str]:
    """A network's records, and the version of their schema."""
    groups, candidates = (read_table(folder / name, READABLE) for name in FILES)
    try:
        about = provenance_of(groups)
        if provenance_of(candidates) != about or version_of(candidates) != version_of(groups):
            raise ValueError("its two files come from different recordings")
        names = [column.name for column in fields(CandidateRecord)]
        needed = [c.name for c in fields(CandidateRecord) if c.default is MISSING]
        candidates.select(needed)
        if unknown := set(candidates.column_names) - set(names):
            raise ValueError(f"unknown columns {sorted(unknown)}")
        found = Records(
            (Provenance(**about),),  # type: ignore[arg-type]
            tuple(_group_record(row) for row in rows_of(groups)),
            tuple(CandidateRecord(*row) for row in tuples_of(candidates, names)),  # type: ignore[arg-type]
        )
        _check_whole(found)
        check_metrics(found.networks)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SelectorError(f"{folder} holds no records of ours: {error!r}") from error
    return found, version_of(groups)


def _check_whole(records: Records) -> None:
    """Every candidate's group must be there."""
    groups = {(row.context, row.group) for row in records.groups}
    for context, group in {(row.context, row.group) for row in records.candidates}:
        if (context, group) not in groups:
            raise ValueError(f"group {group!r} of {context!r} is in {CANDIDATES_FILE} only")


def _group_record(row: Mapping[str, object]) -> GroupRecord:
    def part(prefix: str) -> dict[str, object]:
        return {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}

    scores = {k: np.asarray(v, np.float64) for k, v in part("score_").items() if v is not None}
    return GroupRecord(
        network=str(row["network"]),
        context=str(row["context"]),
        group=str(row["group"]),
        channels=int(str(row["channels"])),
        facts=GroupFacts(**{f.name: float(str(row[f"fact_{f.name}"])) for f in fields(GroupFacts)}),
        state=Context(**{f.name: float(str(row[f"state_{f.name}"])) for f in fields(Context)}),
        scores=scores,
        pairs=_pairs(row),
    )
