"""Measured candidates as data: frozen, flat, versioned; Parquet files, one folder a network."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from selector.data.checks import whole_number
from selector.errors import SelectorError
from selector.files import forget_remains, partial_of, sync
from selector.records.checks import check_measured
from selector.records.decision import Decision
from selector.records.layout import CANDIDATES_FILE, FILES, GROUPS_FILE, SCHEMA_VERSION
from selector.records.measurement import CandidateRecord, GroupRecord
from selector.records.parquet import folders_with, many_objects, rows_in, write_table
from selector.records.provenance import ORIGINS, Provenance, check_metrics, check_mixture
from selector.records.reading import read_folders
from selector.records.recorded_sets import RecordedSets
from selector.records.rows import as_table, group_row


@dataclass(frozen=True, eq=False)
class Records:
    """Measurements on any number of networks."""

    networks: tuple[Provenance, ...]
    groups: tuple[GroupRecord, ...]
    candidates: tuple[CandidateRecord, ...]

    def decisions(self) -> Iterator[tuple[GroupRecord, Decision, list[CandidateRecord]]]:
        """Every decision with the candidates measured for it."""
        by_group = {(g.network, g.context, g.group): g for g in self.groups}
        of_group: dict[tuple[str, str, str], list[CandidateRecord]] = {}
        found: dict[tuple[str, str, str, int], list[CandidateRecord]] = {}
        for row in self.candidates:
            of_group.setdefault((row.network, row.context, row.group), []).append(row)
            found.setdefault((row.network, row.context, row.group, row.count), []).append(row)
        views = {key: by_group[key].view(RecordedSets.of(rows)) for key, rows in of_group.items()}
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
        """Only the records that a selector may learn from: all but those kept for testing."""
        return self.of_networks(p.network for p in self.networks if not p.for_tests)

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
            SelectorError: A network is there already; nothing is overwritten. A row that cannot
                have been measured, or a network whose name is no folder's; nothing is written.
        """
        check_measured(self.networks, self.groups, self.candidates)
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
    def load(cls, folder: str | Path, *, most: int | None = None, seed: int = 0) -> "Records":
        """Read a network's folder, or a folder of such folders.

        Args:
            folder: The folder.
            most: Candidates that are read, about; where there are more, whole decisions are drawn,
                the same share of every network's. All by default.
            seed: Of what is drawn.

        Raises:
            SelectorError: Nothing there, a file that cannot be read, another schema version, or
                networks that do not belong together.
        """
        root = Path(folder)
        found = folders_with(root, FILES)
        if not found:
            raise SelectorError(f"no records in {root}: no {CANDIDATES_FILE} below it")
        share = 1.0
        if most is not None:
            whole_number("most", most, 1)
            share = most / max(1, sum(rows_in(path / CANDIDATES_FILE) for path in found))
        with many_objects():
            recordings, groups, candidates = (
                tuple(chain.from_iterable(part))
                for part in zip(*read_folders(found, share, seed), strict=True)
            )
        check_mixture({str(one.folder): (one.about, one.version) for one in recordings})
        return cls(tuple(one.about for one in recordings), groups, candidates)


def _write(records: Records, provenance: Provenance, root: Path) -> None:
    about = json.dumps(asdict(provenance))
    metadata = {
        "schema_version": str(SCHEMA_VERSION),
        "provenance": about,
        "sha256": hashlib.sha256(about.encode()).hexdigest(),
    }
    target = root / provenance.network
    partial = partial_of(target)
    try:
        forget_remains(target)
        # A folder appears under its name only when both files are whole, and on the disk.
        partial.mkdir()
        groups = as_table([group_row(row) for row in records.groups])
        rows = as_table([asdict(row) for row in records.candidates])
        for table, name in ((groups, GROUPS_FILE), (rows, CANDIDATES_FILE)):
            write_table(table.replace_schema_metadata(metadata), partial / name)
            sync(partial / name)
        sync(partial)
        partial.rename(target)
        sync(root)
    except OSError as error:
        raise SelectorError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
