"""What each part of the selector adds: features and objectives left out or exchanged, held out.

Leave one family out, one booster a fold and no falling back, so that hundreds of boosters fit into
minutes; the figures compare with each other, not with those of the whole selector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
from joblib import Parallel, delayed

from selector.errors import SelectorError
from selector.learning.boosters import Settings, best_weight, excess, network_folds
from selector.learning.evaluation import Grid
from selector.learning.features import feature_names
from selector.learning.regret import CAP, regrets
from selector.learning.selector import SaliencySelector
from selector.learning.table import TrainingTable, log_damage, single_best
from selector.records.decision import CONTEXT, FACTS
from selector.records.records import Records
from selector.tables import text_table
from selector.typing import Matrix, Numbers
from training.evaluation.baselines import capped_regrets
from training.evaluation.protocol import table_of
from training.evaluation.splits import Fold, folds_of
from training.reporting.result_file import write_result

INNER_FOLDS = 3
"""By which the weight of the damage is chosen."""
Learner = Callable[[TrainingTable, Matrix, Matrix, Settings], Matrix]
"""Training table, its features and those to judge, settings -> costs, shape (rows to judge,)."""


@dataclass(frozen=True)
class Variant:
    """One way to learn."""

    name: str
    columns: Callable[[str], bool]
    """Whether a feature is seen."""
    learner: Learner


def run(data: Path, jobs: int, names: Sequence[str] | None = None) -> None:
    """Judge every variant, or those of these names; print the table, write `results/ablation.json`.

    Raises:
        SelectorError: An unknown variant.
    """
    known = {variant.name: variant for variant in VARIANTS}
    for name in names or ():
        if name not in known:
            raise SelectorError(f"unknown variant {name!r}; known: {'; '.join(known)}")
    variants = [known[name] for name in names or known]
    records = Records.load(data).own()
    table = table_of(records)
    folds = folds_of(records.networks, "family")
    found = Parallel(n_jobs=jobs)(delayed(judged_variant)(one, table, folds) for one in variants)
    rows = [{"variant": one.name, **gaps} for one, gaps in zip(variants, found, strict=True)]
    cells = [[str(v) if isinstance(v, str) else f"{v:.1%}" for v in row.values()] for row in rows]
    print(text_table(list(rows[0]), cells))
    summary = {f"{row['variant']}": float(str(row["gap_closed_capped"])) for row in rows}
    print(write_result("ablation", summary, rows))


def judged_variant(
    variant: Variant, table: TrainingTable, folds: Sequence[Fold]
) -> dict[str, float]:
    """Gaps closed on the folds' test networks by one booster a fold."""
    names = [*feature_names(table.metrics), "arm"]
    columns = [n for n, name in enumerate(names) if variant.columns(name)]
    totals: dict[str, Matrix] = {}
    for fold in folds:
        train, test = table.of_networks(fold.train), table.of_networks(fold.test)
        defaults = SaliencySelector()
        how = Settings(defaults.trees, defaults.leaves, defaults.learning_rate, 0)
        x, judged = train.seen.features[:, columns], test.seen.features[:, columns]
        grid = Grid.of(test)
        costs = np.full(grid.selection.shape, np.inf)
        costs[test.seen.decision, test.seen.arm] = variant.learner(train, x, judged, how)
        fixed = [train.arms.index(single_best(train, "nats"))] * len(test.network)
        for method, chosen in (("sbs", fixed), ("own", costs.argmin(1)), ("vbs", grid.measured())):
            nats = grid.of_arms(chosen)
            regret = regrets(grid.evaluation, nats)
            found = np.stack([regret, np.minimum(regret, CAP), nats]).sum(1)
            totals[method] = totals.get(method, np.zeros(3)) + found
    gaps = (totals["sbs"] - totals["own"]) / (totals["sbs"] - totals["vbs"])
    names = ["gap_closed", "gap_closed_capped", "gap_closed_nats"]
    return {name: round(float(gap), 4) for name, gap in zip(names, gaps, strict=True)}


def _boosted(
    train: TrainingTable,
    x: Matrix,
    judged: Matrix,
    how: Settings,
    target: Matrix,
    **options: Any,
) -> Matrix:
    data = lgb.Dataset(
        x,
        target,
        weight=options.pop("weight", train.row_weight),
        group=options.pop("group", None),
        categorical_feature=[x.shape[1] - 1],
    )
    found: Matrix = lgb.train({**how.of(len(x)), **options}, data, how.trees).predict(
        judged, num_threads=1
    )
    return found


def regression(train: TrainingTable, x: Matrix, judged: Matrix, how: Settings) -> Matrix:
    """Capped normalised regret, squared error."""
    return _boosted(train, x, judged, how, train.regret)


def nameless(train: TrainingTable, x: Matrix, judged: Matrix, how: Settings) -> Matrix:
    """The same without knowing which arm it is: how a metric that nobody learnt from is judged."""
    one, other = x.copy(), judged.copy()
    one[:, -1] = other[:, -1] = 0
    return _boosted(train, one, other, how, train.regret)


def ensemble(train: TrainingTable, x: Matrix, judged: Matrix, how: Settings) -> Matrix:
    """Five boosters of other seeds, their mean."""
    found = [_boosted(train, x, judged, replace(how, seed=n), train.regret) for n in range(5)]
    mean: Matrix = np.mean(found, 0)
    return mean


def centred(train: TrainingTable, x: Matrix, judged: Matrix, how: Settings) -> Matrix:
    """Capped normalised regret less its mean over the decision."""
    return _boosted(train, x, judged, how, train.regret - _decision_mean(train, train.regret))


def logarithmic(train: TrainingTable, x: Matrix, judged: Matrix, how: Settings) -> Matrix:
    """Logarithm of one plus the normalised regret, less its mean over the decision."""
    target = np.log1p(train.regret)
    return _boosted(train, x, judged, how, target - _decision_mean(train, target))


def nats(train: TrainingTable, x: Matrix, judged: Matrix, how: Settings) -> Matrix:
    """Logarithm of the loss change, less its mean over the decision."""
    target = np.log(np.maximum(train.nats, 0) + 0.002)
    return _boosted(train, x, judged, how, target - _decision_mean(train, target))


def blended(train: TrainingTable, x: Matrix, judged: Matrix, how: Settings) -> Matrix:
    """Regret plus the log damage above the least, as the selector weighs them."""
    logs = log_damage(train.nats)
    left_out = np.zeros((2, len(x)))
    for rows, others in network_folds(train, INNER_FOLDS):
        for place, target in zip(left_out, (train.regret, logs), strict=True):
            place[others] = _boosted(
                train, x[rows], x[others], how, target[rows], weight=train.row_weight[rows]
            )
    weight = best_weight(train, *left_out)
    regret, damage = (_boosted(train, x, judged, how, target) for target in (train.regret, logs))
    cost: Matrix = regret + weight * excess(damage, _decisions_of(judged))
    return cost


def ranking(train: TrainingTable, x: Matrix, judged: Matrix, how: Settings) -> Matrix:
    """Lambdarank, grouped by decision; relevance is the regret in five steps."""
    steps = np.digitize(train.regret, (0.05, 0.25, 0.75, 1.5))
    sizes = np.bincount(train.seen.decision)
    options = {"objective": "lambdarank", "group": sizes, "weight": None}
    return -_boosted(train, x, judged, how, (4 - steps).astype(np.float64), **options)


def classification(train: TrainingTable, x: Matrix, judged: Matrix, how: Settings) -> Matrix:
    """Whether the candidate is among the best (regret below 0.1), weighted by what is at stake."""
    stake = np.abs(train.regret - 0.1) + 0.05
    options = {"objective": "binary", "weight": train.row_weight * stake}
    return -_boosted(train, x, judged, how, (train.regret < 0.1).astype(float), **options)


def pairwise(train: TrainingTable, x: Matrix, judged: Matrix, how: Settings) -> Matrix:
    """Regret against the decision's mean from features less their mean over the decision."""
    means = _decision_means(train.seen.decision, x)
    inside = np.concatenate([x[:, :-1], (x - means[train.seen.decision])[:, :-1], x[:, -1:]], 1)
    target = train.regret - _decision_mean(train, train.regret)
    decision = _decisions_of(judged)
    other = judged - _decision_means(decision, judged)[decision]
    theirs = np.concatenate([judged[:, :-1], other[:, :-1], judged[:, -1:]], 1)
    return _boosted(train, inside, theirs, how, target)


def _decisions_of(judged: Matrix) -> Numbers:
    """Numbers of the decisions of rows that stand decision after decision, arms ascending."""
    begins = np.concatenate([[True], np.diff(judged[:, -1]) <= 0])
    numbers: Numbers = np.cumsum(begins) - 1
    return numbers


def _decision_means(decision: Numbers, values: Matrix) -> Matrix:
    sums = np.zeros((int(decision[-1]) + 1, values.shape[1]))
    np.add.at(sums, decision, values)
    means: Matrix = sums / np.bincount(decision)[:, None]
    return means


def _decision_mean(train: TrainingTable, values: Matrix) -> Matrix:
    decision = train.seen.decision
    means: Matrix = (np.bincount(decision, values) / np.bincount(decision))[decision]
    return means


def one_arm_fits_all(train: TrainingTable, x: Matrix, judged: Matrix, how: Settings) -> Matrix:
    """No learning: mean regret of the arm over the training decisions."""
    means = capped_regrets(Grid.of(train)).mean(0)
    chosen: Matrix = means[judged[:, -1].astype(int)]
    return chosen


def _without(*prefixes: str) -> Callable[[str], bool]:
    return lambda name: name == "arm" or not name.startswith(prefixes)


def _only(names: Sequence[str]) -> Callable[[str], bool]:
    wanted = {*names, "arm"}
    return lambda name: name in wanted


_JOINT = ("plain_", "compensated_")
_SINGLE = (
    "share_",
    "excess_",
    "mean_excess",
    "rank_of_excess",
    "log_taylor",
    "log_fisher",
    "regret_",
)
VARIANTS = (
    Variant("no learning", _without(), one_arm_fits_all),
    Variant("facts, context, step", _only([*FACTS, *CONTEXT, "ratio", "one_channel"]), regression),
    Variant("without pairs of channels", _without(*_JOINT), regression),
    Variant("pairs of plain removal only", _without("compensated_"), regression),
    Variant("without metrics' opinions", _without(*_SINGLE), regression),
    Variant("without rank correlations", _without("agreement_"), regression),
    Variant("without facts", lambda name: name not in FACTS, regression),
    Variant("without the spread of scores", _without("own_"), regression),
    Variant("all, regression", _without(), regression),
    Variant("all, regression, arms without names", _without(), nameless),
    Variant("all, regression, five seeds", _without(), ensemble),
    Variant("all, regression, centred", _without(), centred),
    Variant("all, regression of log(1 + regret)", _without(), logarithmic),
    Variant("all, regression of log nats", _without(), nats),
    Variant("all, regression of both, weighed", _without(), blended),
    Variant("all, lambdarank", _without(), ranking),
    Variant("all, classification by stake", _without(), classification),
    Variant("all, and differences within the decision", _without(), pairwise),
)
