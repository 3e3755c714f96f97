"""Records made up for tests of what is done with them: no network is measured."""

import json
from collections.abc import Sequence
from dataclasses import astuple

import numpy as np

from selector.records.decision import Context, GroupFacts
from selector.records.measurement import CandidateRecord, GroupRecord
from selector.records.provenance import Provenance
from selector.records.records import Records
from selector.typing import Matrix

METRICS = ("l1", "taylor", "fpgm")


def made(
    networks: Sequence[str],
    *,
    seed: int = 0,
    groups: int = 4,
    metrics: Sequence[str] = METRICS,
    origin: str = "own",
    family: str = "made",
    contexts: Sequence[str] = ("unpruned",),
    compensated: bool = False,
) -> Records:
    """Networks with measurements drawn at random; the same name gives the same ones."""
    found = [
        _one(n, seed, groups, metrics, origin, family, contexts, compensated) for n in networks
    ]
    return Records(
        tuple(p for one in found for p in one.networks),
        tuple(row for one in found for row in one.groups),
        tuple(row for one in found for row in one.candidates),
    )


def _one(
    network: str,
    seed: int,
    groups: int,
    metrics: Sequence[str],
    origin: str,
    family: str,
    contexts: Sequence[str],
    compensated: bool,
) -> Records:
    chance = np.random.default_rng([seed, *network.encode()])
    versions = json.dumps({"metrics": list(metrics)})
    provenance = Provenance(network, family, "none", origin, 10, versions)
    rows, candidates = [], []
    for context in contexts:
        for number in range(groups):
            name, channels = f"layer{number}", 8 + number % 5
            facts = GroupFacts(**{f: float(chance.uniform()) for f in GroupFacts.__annotations__})
            scores: dict[str, Matrix] = {
                m: chance.uniform(size=channels).astype(np.float32).astype(np.float64)
                for m in metrics or METRICS
            }
            kept = float(context.partition("-")[2] or 1)
            state = Context(kept, 0.5, 0.5, 3.0, 8.0)
            rows.append(GroupRecord(network, context, name, channels, facts, state, scores))
            for count in (1, 4):
                for place, arm in enumerate(metrics or METRICS):
                    loss = chance.uniform(size=8 if compensated else 4).tolist()
                    row = CandidateRecord(network, context, name, count, arm, place, *loss)
                    candidates.append(row)
    return Records((provenance,), tuple(rows), tuple(candidates))


def same(one: Records, other: Records) -> bool:
    """Whether all measurements are equal, to the last bit."""
    return (
        one.networks == other.networks
        and one.candidates == other.candidates
        and len(one.groups) == len(other.groups)
        and all(
            (a.network, a.context, a.group, a.channels, astuple(a.facts), astuple(a.state))
            == (b.network, b.context, b.group, b.channels, astuple(b.facts), astuple(b.state))
            and a.scores.keys() == b.scores.keys()
            and all(np.array_equal(a.scores[m], b.scores[m]) for m in a.scores)
            for a, b in zip(one.groups, other.groups, strict=True)
        )
    )


def facts(kernel: float, channels: int, chance: np.random.Generator) -> GroupFacts:
    values = {name: float(chance.uniform()) for name in GroupFacts.__dataclass_fields__}
    return GroupFacts(**{**values, "kernel": kernel, "log_channels": float(np.log2(channels))})


def lawful(
    names: Sequence[str],
    seed: int,
    groups: int = 12,
    family: str = "made",
    dataset: str = "none",
) -> Records:
    """Networks in which `l1` is right in 3x3 layers and `taylor` in 1x1 ones; `fpgm` never is."""
    chance = np.random.default_rng(seed)
    provenance, group_rows, rows = [], [], []
    for network in names:
        provenance.append(Provenance(network, family, dataset, "own", 10, "{}"))
        for number in range(groups):
            kernel, channels = (3.0 if number % 2 else 1.0), 16
            name = f"layer{number}"
            scores: dict[str, Matrix] = {arm: chance.uniform(size=channels) for arm in METRICS}
            state = Context(1.0, 0.5, 0.5, 3.0, 8.0)
            group_rows.append(
                GroupRecord(
                    network,
                    "unpruned",
                    name,
                    channels,
                    facts(kernel, channels, chance),
                    state,
                    scores,
                )
            )
            for count in (1, 4, 8):
                for place, arm in enumerate(METRICS):
                    right = arm == ("l1" if kernel == 3 else "taylor")
                    loss = count * (0.01 if right else 0.05 if arm != "fpgm" else 0.2)
                    loss *= float(chance.uniform(0.9, 1.1))
                    rows.append(
                        CandidateRecord(
                            network, "unpruned", name, count, arm, place, loss, 0.0, loss, 0.0
                        )
                    )
    return Records(tuple(provenance), tuple(group_rows), tuple(rows))
