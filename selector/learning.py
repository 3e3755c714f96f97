"""Records -> what the boosters learn from: features, normalised regrets, loss changes, the SBS."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selector.errors import SelectorError
from selector.features import Matrix, candidates, describe
from selector.records import CandidateRecord, Records

FLOOR_NATS = 0.002
"""Added to the spread of a decision's arms, so that decisions without a difference stay small."""
CAP = 3.0
"""Normalised regrets above this count as this: one ruined layer teaches no more than another."""
DAMAGE_OFFSET = 0.005
"""Nats added before the logarithm in which loss changes are learnt."""


@dataclass(frozen=True, eq=False)
class TrainingTable:
    """One row for each candidate of every decision."""

    features: Matrix
    regret: Matrix
    nats: Matrix
    weight: Matrix
    network: npt.NDArray[np.str_]


def normalised_regrets(rows: Sequence[CandidateRecord]) -> Matrix:
    """`normalised` of the loss changes of a decision's candidates, mean of both splits."""
    return normalised(np.array([row.nats for row in rows]))


def normalised(nats: Matrix) -> Matrix:
    """Regret over the spread of the decision: (nats - best) / (median - best + 0.002 nats)."""
    best = nats.min()
    regrets: Matrix = (nats - best) / (np.median(nats) - best + FLOOR_NATS)
    return regrets


def single_best(records: Records, arms: Sequence[str]) -> str:
    """The arm with the lowest mean normalised regret, capped, among those that always apply."""
    costs: dict[str, list[float]] = {arm: [] for arm in arms}
    decisions = 0
    for _, _, rows in records.decisions():
        known = [row for row in rows if row.arm in costs]
        decisions += 1
        for row, regret in zip(known, normalised_regrets(known), strict=True):
            costs[row.arm].append(min(float(regret), CAP))
    always = {arm: float(np.mean(c)) for arm, c in costs.items() if len(c) == decisions}
    if not always:
        raise SelectorError("no arm was measured in every decision; record with all the metrics")
    return min(always, key=always.__getitem__)


def training_table(records: Records, arms: list[str], metrics: list[str]) -> TrainingTable:
    """Features and targets of all candidates of these arms; every decision weighs the same."""
    features, regrets, nats, weights, networks = [], [], [], [], []
    for group, decision, rows in records.decisions():
        known = [row for row in rows if row.arm in arms]
        proposals = candidates(decision, [row.arm for row in known])
        described = describe(decision, proposals, metrics)
        features.append(with_arm(described, proposals, arms))
        regrets.append(np.minimum(normalised_regrets(known), CAP))
        nats.append(np.array([row.nats for row in known]))
        weights.append(np.full(len(known), 1 / len(known)))
        networks += [group.network] * len(known)
    return TrainingTable(
        np.concatenate(features),
        np.concatenate(regrets),
        np.concatenate(nats),
        np.concatenate(weights) * len(networks) / len(weights),
        np.array(networks),
    )


def with_arm(features: Matrix, proposals: Mapping[str, object], arms: Sequence[str]) -> Matrix:
    """The features with the number of the arm as last column."""
    column = np.array([[float(arms.index(arm))] for arm in proposals])
    return np.concatenate([features, column], 1)


def log_damage(nats: Matrix) -> Matrix:
    """Loss changes in the logarithm in which they are learnt."""
    logs: Matrix = np.log(np.maximum(nats, 0) + DAMAGE_OFFSET)
    return logs
