"""Records of any size, drawn and not measured: what loading and fitting must bear."""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pyarrow as pa

from selector.records.decision import CONTEXT, FACTS, SET_ERRORS
from selector.records.layout import CANDIDATES_FILE, GROUPS_FILE, SCHEMA_VERSION
from selector.records.measurement import CandidateRecord
from selector.records.parquet import write_table
from selector.records.provenance import Provenance
from selector.saliency.registry import arms

CHANNELS = 32


def make_records(folder: Path, networks: int, groups: int, counts: int, metrics: int) -> int:
    """Write drawn records, one folder for each network; what is there stays.

    Args:
        folder: Of all networks.
        networks: How many.
        groups: Of each network.
        counts: Decisions in each group.
        metrics: Arms in each decision.

    Returns:
        Candidates in all.
    """
    names = arms()[:metrics]
    for number in range(networks):
        target = folder / f"network{number:05d}"
        if target.exists():
            continue
        partial = folder / f".network{number:05d}"
        partial.mkdir(parents=True, exist_ok=True)
        chance = np.random.default_rng(number)
        metadata = _metadata(target.name, names)
        scores = chance.gamma(1.0, 1.0, (len(names), groups, CHANNELS)).astype(np.float32)
        for table, file in (
            (_groups(target.name, names, scores, chance), GROUPS_FILE),
            (_candidates(target.name, names, groups, counts, chance), CANDIDATES_FILE),
        ):
            write_table(table.replace_schema_metadata(metadata), partial / file)
        partial.rename(target)
    return networks * groups * counts * len(names)


def _metadata(network: str, names: list[str]) -> dict[str, str]:
    versions = json.dumps({"metrics": names})
    about = json.dumps(asdict(Provenance(network, "drawn", "drawn", "own", 100, versions)))
    digest = hashlib.sha256(about.encode()).hexdigest()
    return {"schema_version": str(SCHEMA_VERSION), "provenance": about, "sha256": digest}


def _repeated(text: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [text]).cast(pa.string())


def _group_names(groups: int) -> list[str]:
    return [f"layer{number}" for number in range(groups)]


def _groups(
    network: str, names: list[str], scores: np.ndarray, chance: np.random.Generator
) -> pa.Table:
    groups = scores.shape[1]
    columns: dict[str, object] = {
        "network": _repeated(network, groups),
        "context": _repeated("unpruned", groups),
        "group": _group_names(groups),
        "channels": np.full(groups, CHANNELS),
    }
    columns |= {f"fact_{name}": chance.random(groups) for name in FACTS}
    columns |= {f"state_{name}": chance.random(groups) + 0.1 for name in CONTEXT}
    columns |= {f"score_{name}": list(of) for name, of in zip(names, scores, strict=True)}
    return pa.table(columns)


def _candidates(
    network: str, names: list[str], groups: int, counts: int, chance: np.random.Generator
) -> pa.Table:
    shape = (groups, counts, len(names))
    size = groups * counts * len(names)
    group, count, arm = (part.ravel() for part in np.indices(shape))
    columns: dict[str, object] = {
        "network": _repeated(network, size),
        "context": _repeated("unpruned", size),
        "group": pa.DictionaryArray.from_arrays(group, _group_names(groups)).cast(pa.string()),
        "count": count + 1,
        "arm": pa.DictionaryArray.from_arrays(arm, names).cast(pa.string()),
        "set_id": arm,
    }
    damage = 0.01 * (count + 1) * (1 + arm / len(names)) * chance.lognormal(0, 0.5, size)
    measured = [column for column in fields(CandidateRecord)[6:] if column.name != "channels"]
    for column in measured:
        noise = chance.normal(0, 0.001, size)
        positive = column.name.endswith("error") or column.name in SET_ERRORS
        columns[column.name] = abs(noise) if positive else damage + noise
    return pa.table(columns)
