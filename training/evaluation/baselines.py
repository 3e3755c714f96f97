"""What a selector must beat: fixed arms, fixed portfolios with an oracle, simpler learners.

All learn from the training table alone, in which networks weigh alike. A baseline is arms for every
decision of a test table: one, or several of which the oracle takes the best.
"""

from collections.abc import Sequence

import lightgbm as lgb
import numpy as np
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from selector.learning.evaluation import Grid
from selector.learning.features import feature_names
from selector.learning.regret import CAP, regrets
from selector.learning.table import TrainingTable
from selector.typing import Matrix, Numbers

NEIGHBOURS = 25
PORTFOLIOS = (1, 2, 3, 5)


def capped_regrets(grid: Grid) -> Matrix:
    """Normalised regrets of training decisions, both splits, capped; missing arms cost the cap."""
    found: Matrix = np.nan_to_num(np.minimum(regrets(grid.both), CAP), nan=CAP)
    return found


def best_arms(train: TrainingTable, size: int) -> list[int]:
    """The arms with the lowest mean capped regrets, best first."""
    means = train.weight @ capped_regrets(Grid.of(train))
    return [int(arm) for arm in np.argsort(means, kind="stable")[:size]]


def greedy_portfolio(train: TrainingTable, size: int) -> list[int]:
    """Arms added one by one, each the one that lowers the mean regret of the best so far most."""
    costs = capped_regrets(Grid.of(train))
    best = np.full(len(costs), np.inf)
    chosen: list[int] = []
    for _ in range(min(size, costs.shape[1])):
        left = [arm for arm in range(costs.shape[1]) if arm not in chosen]
        means = [float(train.weight @ np.minimum(best, costs[:, arm])) for arm in left]
        chosen.append(left[int(np.argmin(means))])
        best = np.minimum(best, costs[:, chosen[-1]])
    return chosen


def _lowest(predicted: Matrix, grid: Grid) -> Numbers:
    chosen: Numbers = np.where(np.isnan(grid.selection), np.inf, predicted).argmin(1)
    return chosen


def nearest_neighbours(train: TrainingTable, test: TrainingTable) -> Numbers:
    """Arms with the lowest mean regret among the training decisions with the most similar facts."""
    model = make_pipeline(StandardScaler(), KNeighborsRegressor(NEIGHBOURS))
    model.fit(train.seen.facts, capped_regrets(Grid.of(train)))
    return _lowest(model.predict(test.seen.facts), Grid.of(test))


def linear(train: TrainingTable, test: TrainingTable) -> Numbers:
    """Arms with the lowest regret by ridge regression on the decisions' facts."""
    model = make_pipeline(StandardScaler(), Ridge(10.0))
    weights = train.weight / train.weight.mean()
    model.fit(train.seen.facts, capped_regrets(Grid.of(train)), ridge__sample_weight=weights)
    return _lowest(model.predict(test.seen.facts), Grid.of(test))


JOINT_RULE = "lowest second - w * first"
"""The set's joint effect on the loss, with the weight of the first order that did best in the
training folds; nothing else is learnt."""
JOINT_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def _column(table: TrainingTable, name: str) -> Matrix:
    """A feature of every row."""
    found: Matrix = table.seen.features[:, feature_names(table.metrics).index(name)]
    return found.astype(np.float64)


def _joint(table: TrainingTable, weight: float) -> Matrix:
    """Of every row the set's joint effect of both orders, in nats."""
    second = np.maximum(10 ** _column(table, "plain_log_second") - 1e-8, 0.0)
    first = _column(table, "plain_signed") * np.sqrt(2 * second)
    effect: Matrix = second - weight * first
    return effect


def _least_of(table: TrainingTable, values: Matrix) -> Numbers:
    """Arms with the least value in every decision; rows without one do not count."""
    grid = Grid.of(table)
    estimate = np.full(grid.selection.shape, np.inf)
    estimate[table.seen.decision, table.seen.arm] = values
    return _lowest(np.nan_to_num(estimate, nan=np.inf), grid)


def joint_weight(train: TrainingTable) -> float:
    """The weight of the first order with which the rule costs least on the training networks."""
    costs = capped_regrets(Grid.of(train))

    def cost(weight: float) -> float:
        chosen = _least_of(train, _joint(train, weight))
        return float(train.weight @ costs[np.arange(len(costs)), chosen])

    return min(JOINT_WEIGHTS, key=cost)


def lowest_joint(test: TrainingTable, weight: float) -> Numbers:
    """Arms whose choice has the least joint effect, by `joint_weight`."""
    return _least_of(test, _joint(test, weight))


def lowest_estimate(test: TrainingTable, feature: str) -> Numbers:
    """Arms whose choice has the least of one feature; nothing is learnt."""
    return _least_of(test, _column(test, feature))


def group_features_only(
    train: TrainingTable, test: TrainingTable, columns: Sequence[int]
) -> Numbers:
    """Arms with the lowest regret by boosted trees that see facts and arm, not the candidates.

    Args:
        train: What is learnt from.
        test: What is chosen for.
        columns: Of the features: those that describe the group, and the arm.
    """
    data = lgb.Dataset(
        train.seen.features[:, columns],
        train.regret,
        weight=train.row_weight,
        categorical_feature=[len(columns) - 1],
    )
    settings = {
        "objective": "regression",
        "learning_rate": 0.05,
        "num_leaves": 15,
        "min_data_in_leaf": 50,
        "num_threads": 1,
        "verbosity": -1,
        "seed": 0,
        "deterministic": True,
        "force_col_wise": True,
    }
    booster = lgb.train(settings, data, 200)
    return _least_of(test, booster.predict(test.seen.features[:, columns], num_threads=1))
