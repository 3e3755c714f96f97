"""LightGBM as it is used here: settings, boosters that leave networks out, the weighed cost.

LightGBM learns; what it has learnt is a `Forest` of ours, so that using it does not load LightGBM.

Following an arm costs its predicted normalised regret plus a weight times its log damage. The
regret asks for the best arm, whatever is at stake; the damage in nats gives weight to decisions in
which a wrong arm ruins the layer. Each has its own boosters; their sum errs less than either.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selector.data.checks import is_number, whole_number
from selector.errors import SelectorError
from selector.learning.forest import Forest
from selector.learning.forest_text import ForestLimits, read_forest, slim
from selector.learning.table import TrainingTable
from selector.typing import Matrix, Numbers

MOST_LEAVES, MOST_LEAVES_IN_ALL = 1024, 2**21
"""Of a tree, and of a booster: bounds of the memory that a saved selector can ask for."""


@dataclass(frozen=True)
class Settings:
    """How boosters learn."""

    trees: int
    leaves: int
    learning_rate: float
    seed: int

    def of(self, rows: int) -> dict[str, Any]:
        """LightGBM's parameters.

        Args:
            rows: Rows that are learnt from.
        """
        return {
            "objective": "regression",
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": min(200, max(2, rows // 20)),
            "feature_fraction": 0.3,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "lambda_l2": 5.0,
            "max_bin": 127,
            "seed": self.seed,
            "deterministic": True,
            "force_col_wise": True,
            # Fastest on shared machines, and the same numbers everywhere.
            "num_threads": 1,
            "verbosity": -1,
        }


def check_settings(
    *,
    folds: object,
    trees: object,
    leaves: object,
    learning_rate: object,
    caution: object,
    seed: object,
) -> None:
    """Check the settings of the boosters.

    Raises:
        SelectorError: A setting out of range.
    """
    whole = (("folds", folds, 2), ("trees", trees, 1), ("leaves", leaves, 2), ("seed", seed, 0))
    for name, value, least in whole:
        whole_number(name, value, least)
    assert isinstance(trees, int)
    assert isinstance(leaves, int)
    if leaves > MOST_LEAVES or trees * leaves > MOST_LEAVES_IN_ALL:
        raise SelectorError(
            f"trees={trees} of leaves={leaves} are too large; {MOST_LEAVES} leaves a tree and "
            f"{MOST_LEAVES_IN_ALL} in all are the most"
        )
    for name, value, above in (("learning_rate", learning_rate, 1e-9), ("caution", caution, 0.0)):
        if not is_number(value) or not above <= value < math.inf:
            raise SelectorError(f"{name}={value!r} must be a finite number, {above:g} or more")


def check_teaches(table: TrainingTable) -> None:
    """Make sure that there is something to learn from a table.

    Raises:
        SelectorError: Loss changes that are not finite, or that never differ.
    """
    if not np.isfinite(table.nats).all():
        names = sorted(set(table.row_network[~np.isfinite(table.nats)].tolist()))
        raise SelectorError(
            f"loss changes of {', '.join(names)} are not finite; check the loss, and record again"
        )
    if not float(np.ptp(table.nats)) > 0:
        raise SelectorError(
            "every candidate of these records has the same loss change, so there is nothing to "
            "learn; check the network's weights and the loss"
        )
    if not float(np.ptp(table.regret)) > 0:
        raise SelectorError(
            "in no decision of these records do two metrics' choices differ in loss change, so "
            "there is nothing to learn of whom to trust; record larger steps or more metrics"
        )


def fit_booster(
    table: TrainingTable, target: Matrix, rows: Numbers, names: Sequence[str], settings: Settings
) -> Forest:
    """Learn a target from some rows of the table; the last feature is the arm's number.

    Args:
        table: Features and weights.
        target: Shape (all rows,).
        rows: Those to learn from.
        names: Of the features.
        settings: How.
    """
    import lightgbm as lgb  # Only here: using what was learnt does not need it.

    data = lgb.Dataset(
        table.seen.features[rows],
        target[rows],
        weight=table.row_weight[rows],
        feature_name=list(names),
        categorical_feature=["arm"],
    )
    booster = lgb.train(settings.of(len(rows)), data, settings.trees)
    limits = ForestLimits(
        trees=settings.trees,
        leaves=settings.leaves,
        features=tuple(names),
        categories=len(table.arms),
    )
    return read_forest(slim(booster.model_to_string()), limits)


def network_folds(table: TrainingTable, folds: int) -> Iterator[tuple[Numbers, Numbers]]:
    """Rows of all networks but some, and of those, so that every network is left out once."""
    from sklearn.model_selection import GroupKFold  # Slow to import.

    names = table.row_network
    yield from GroupKFold(min(folds, len(np.unique(names)))).split(names, groups=names)


WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Weights of the damage, relative to the regret, that are tried."""


def excess(logs: Matrix, decision: Numbers) -> Matrix:
    """Log damages above the least of their decision.

    Args:
        logs: Of every row, shape (rows,).
        decision: Of every row the number of its decision, ascending.
    """
    starts = _starts(decision)
    least = np.minimum.reduceat(logs, starts)
    above: Matrix = logs - np.repeat(least, np.diff(starts, append=len(logs)))
    return above


def best_weight(table: TrainingTable, regrets: Matrix, logs: Matrix) -> float:
    """The weight of the damage by which the arms chosen have the lowest mean capped regret.

    Args:
        table: Measured decisions.
        regrets: Of every row the normalised regret, predicted without the row's network.
        logs: The same of the log damage.

    Returns:
        One of `WEIGHTS`, the least of those that are equally good.
    """
    starts = _starts(table.seen.decision)
    above, true = excess(logs, table.seen.decision), table.regret

    def mean_regret(weight: float) -> float:
        parts = np.split(regrets + weight * above, starts[1:])
        chosen = starts + np.array([part.argmin() for part in parts])
        return float(np.average(true[chosen], weights=table.weight))

    return min(WEIGHTS, key=mean_regret)


def _starts(decision: Numbers) -> Numbers:
    """The first row of every decision."""
    return np.flatnonzero(np.diff(decision, prepend=-1))
