"""Measured candidates as data: frozen, flat, versioned; Parquet files, one folder a network."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selector.errors import SelectorError
from selector.facts import Context, Decision, GroupFacts
from selector.pairs import MODES, Matrix, Pairs

SCHEMA_VERSION = 3
READABLE = ("1", "2", "3")
"""Version 1 had the unpruned state and plain removal only, version 2 no pairs of channels; what is
missing reads as not measured."""
GROUPS_FILE = "groups.parquet"
CANDIDATES_FILE = "candidates.parquet"


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


@dataclass(frozen=True)
class Provenance:
    """Where a network's records come from."""

    network: str
    family: str
    dataset: str
    origin: str
    """`own` for networks that a selector may learn from, `foreign` for those kept for testing."""
    images: int
    """Images behind the signals, and in each of the two splits."""
    versions: str
    """Of this package, torch and the metrics, as JSON."""
    seed: int = 0
    """Of the drawn contexts and counts, and of the `random` metric."""
    device: str = ""
    """Where it was measured."""
    macs: float | None = None
    """Multiply-accumulates per image of the unpruned network."""
    parameters: float | None = None
    accuracy: float | None = None
    """Share of the images of both splits that the unpruned network classifies right."""


@dataclass(frozen=True, eq=False)
class Records:
    """Measurements on any number of networks."""

    networks: tuple[Provenance, ...]
    groups: tuple[GroupRecord, ...]
    candidates: tuple[CandidateRecord, ...]

    def decisions(self) -> Iterator[tuple[GroupRecord, Decision, list[CandidateRecord]]]:
        """Every decision with the candidates measured for it."""
        by_group = {(g.network, g.context, g.group): g for g in self.groups}
        found: dict[tuple[str, str, str, int], list[CandidateRecord]] = {}
        for row in self.candidates:
            found.setdefault((row.network, row.context, row.group, row.count), []).append(row)
        for (network, context, name, count), rows in found.items():
            group = by_group[network, context, name]
            yield group, Decision(group.facts, group.state, group.scores, count, group.pairs), rows

    def of_networks(self, names: Iterable[str]) -> "Records":
        """Only the records of these networks."""
        kept = set(names)
        return Records(
            tuple(row for row in self.networks if row.network in kept),
            tuple(row for row in self.groups if row.network in kept),
            tuple(row for row in self.candidates if row.network in kept),
        )

    def __add__(self, other: "Records") -> "Records":
        """Records of both; a network may be in one of them only.

        Raises:
            SelectorError: A network is in both.
        """
        twice = {p.network for p in self.networks} & {p.network for p in other.networks}
        if twice:
            raise SelectorError(
                f"network {sorted(twice)[0]!r} is in both sets of records; give it another name"
            )
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
        root.mkdir(parents=True, exist_ok=True)
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
            SelectorError: Nothing there, a file that cannot be read, or another schema version.
        """
        root = Path(folder)
        found = sorted(root.rglob(CANDIDATES_FILE))
        if not found:
            raise SelectorError(f"no records in {root}: no {CANDIDATES_FILE} below it")
        result = cls((), (), ())
        for path in found:
            result = result + _read(path.parent)
        return result


def _write(records: Records, provenance: Provenance, root: Path) -> None:
    metadata = {
        "schema_version": str(SCHEMA_VERSION),
        "provenance": json.dumps(asdict(provenance)),
    }
    # A folder appears under its name only when both files are whole.
    partial = Path(tempfile.mkdtemp(prefix=f".{provenance.network}.", dir=root))
    try:
        os.chmod(partial, 0o755)
        groups = _as_table([_group_row(row) for row in records.groups])
        rows = _as_table([asdict(row) for row in records.candidates])
        for table, name in ((groups, GROUPS_FILE), (rows, CANDIDATES_FILE)):
            pq.write_table(
                table.replace_schema_metadata(metadata), partial / name, compression="zstd"
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


def _read(folder: Path) -> Records:
    groups, candidates = (_table(folder / name) for name in (GROUPS_FILE, CANDIDATES_FILE))
    try:
        provenance = Provenance(**json.loads(groups.schema.metadata[b"provenance"]))
        return Records(
            (provenance,),
            tuple(_group_record(row) for row in groups.to_pylist()),
            tuple(CandidateRecord(**row) for row in candidates.to_pylist()),
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise SelectorError(f"{folder} holds no records of ours: {error!r}") from error


def _table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise SelectorError(f"{path} cannot be read as Parquet: {error}") from error
    version = (table.schema.metadata or {}).get(b"schema_version", b"none").decode()
    if version not in READABLE:
        raise SelectorError(
            f"{path} has records schema {version}, this version reads {', '.join(READABLE)}; "
            "record the network again"
        )
    return table


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
