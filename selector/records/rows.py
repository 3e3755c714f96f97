"""Rows of records as rows of Parquet tables, and back."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields

import numpy as np
import pyarrow as pa

from selector.records.decision import Context, GroupFacts
from selector.records.measurement import GroupRecord
from selector.statistics.gate_fisher import MODES, Pairs
from selector.typing import Matrix


def as_table(rows: list[dict[str, object]]) -> pa.Table:
    """A table of all columns that any of the rows has: not every group has every metric."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])


def group_row(record: GroupRecord) -> dict[str, object]:
    """A group as a row of its table; scores and pairs are kept in fewer digits."""
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


def group_record(row: Mapping[str, object]) -> GroupRecord:
    """Undo `group_row`.

    Raises:
        KeyError: A column is missing.
        ValueError: A value of another type.
    """

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
