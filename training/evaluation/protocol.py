"""How far a selector closes the gap between the single best metric and the oracle, held out.

Leave one family, one data set, or both out: a selector learns from the other networks and is judged
on these. Nothing is tuned on the test side: SBS, portfolios and all settings come from the networks
that are learnt from.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from selector.learning.evaluation import (
    SBS_NATS,
    SBS_REGRET,
    SELECTOR,
    VBS,
    Grid,
    Judged,
    Outcome,
    joined,
)
from selector.learning.features import feature_names
from selector.learning.prediction import Prediction
from selector.learning.regret import regrets
from selector.learning.selector import SaliencySelector
from selector.learning.table import TrainingTable, names_of, single_best, training_table
from selector.recording.measure import BASELINES
from selector.records.decision import CONTEXT, FACTS, SET_ERRORS
from selector.records.measurement import CandidateRecord
from selector.records.records import Records
from selector.typing import Matrix, Numbers
from training.evaluation.baselines import (
    JOINT_RULE,
    PORTFOLIOS,
    best_arms,
    greedy_portfolio,
    group_features_only,
    joint_weight,
    linear,
    lowest_estimate,
    lowest_joint,
    nearest_neighbours,
)
from training.evaluation.splits import SplitName, folds_of
from training.evaluation.weights import weights_of

RATIO_BINS: Mapping[str, tuple[float, float]] = {
    "up to 10 %": (0.0, 0.1),
    "10 to 25 %": (0.1, 0.25),
    "25 to 50 %": (0.25, 0.5),
    "above 50 %": (0.5, 1.0),
}
"""Shares of a group's channels that go."""


def table_of(records: Records) -> TrainingTable:
    """Described once, for all folds."""
    weights = weights_of(p.network for p in records.networks)
    return training_table(records, *names_of(records), weights)


def evaluated(
    records: Records,
    table: TrainingTable,
    split: SplitName = "family",
    *,
    selector: SaliencySelector | None = None,
    baselines: bool = True,
    share: float = 1.0,
    progress: bool = False,
) -> Judged:
    """Judge selectors that have not seen what they are judged on.

    Args:
        records: Of many networks.
        table: `table_of` them.
        split: What is left out together.
        selector: Its settings are used; the defaults otherwise.
        baselines: Whether the slower baselines are judged, too.
        share: Part of the networks that is learnt from, drawn at random: for learning curves.
        progress: Show a progress bar.
    """
    chance = np.random.default_rng(0)
    families = {p.network: p.family for p in records.networks}
    extra = _measured_beside(records)
    parts = []
    for fold in tqdm(folds_of(records.networks, split), split, disable=not progress):
        few = chance.permutation(fold.train)[: max(2, round(share * len(fold.train)))]
        train, test = table.of_networks(few.tolist()), table.of_networks(fold.test)
        learnt = SaliencySelector(**(selector or SaliencySelector()).get_params())
        learnt.fit_table(train)
        beside = {name: found[np.isin(table.network, fold.test)] for name, found in extra.items()}
        predictions = learnt.predict_described(test.seen)
        outcomes = _outcomes(predictions, train, test, beside, baselines)
        parts.append(
            Judged(
                {one.method: one for one in outcomes},
                test.network,
                np.array([families[name] for name in test.network.tolist()]),
                test.context,
                test.seen.facts[:, -1],
                _forecasts(predictions, test),
            )
        )
    return joined(parts)


def _measured_beside(records: Records) -> dict[str, Matrix]:
    """Baseline metric -> loss changes of its candidates, (decisions,); NaN where not measured."""
    found = _by_arm(records, BASELINES, lambda row: row.label[1])
    return dict(zip(BASELINES, found.T, strict=True))


def errors_of(records: Records, table: TrainingTable) -> Matrix:
    """Standard errors of what is learnt, (decisions, arms); NaN where an arm was not measured."""
    return _by_arm(records, table.arms, lambda row: row.label_error)


def _by_arm(
    records: Records, arms: Sequence[str], value: Callable[[CandidateRecord], float]
) -> Matrix:
    """A value of every arm's candidate, (decisions, arms); NaN where it was not measured."""
    lines = [{row.arm: value(row) for row in rows} for _, _, rows in records.decisions()]
    return np.array([[line.get(arm, np.nan) for arm in arms] for line in lines])


def _forecasts(predictions: Sequence[Prediction], test: TrainingTable) -> Matrix:
    rows = [
        (found.loss_change_nats[arm], *found.loss_change_interval[arm])
        for found in predictions
        for arm in found.proposals
    ]
    return np.concatenate([np.array(rows), test.nats[:, None]], 1)


def _outcomes(
    predictions: Sequence[Prediction],
    train: TrainingTable,
    test: TrainingTable,
    beside: Mapping[str, Matrix],
    baselines: bool,
) -> Iterator[Outcome]:
    grid = Grid.of(test)

    numbers = {name: number for number, name in enumerate(test.arms)}

    def of_arms(method: str, calls: float, chosen: Numbers | Sequence[int]) -> Outcome:
        return Outcome.of(method, calls, grid.of_arms(chosen), grid)

    count = len(test.network)
    every = grid.evaluation
    yield Outcome("mean of all arms", 0, np.nanmean(every, 1), np.nanmean(regrets(every), 1))
    for name, nats in beside.items():
        yield Outcome.of(name, 0, nats, grid)
    yield of_arms(SBS_NATS, 0, [numbers[single_best(train, "nats")]] * count)
    yield of_arms(SBS_REGRET, 0, [numbers[single_best(train)]] * count)
    for number, arm in enumerate(test.arms):
        if not np.isnan(every[:, number]).any():
            yield of_arms(f"always {arm}", 0, [number] * count)
    if baselines:
        yield of_arms("nearest neighbours", 0, nearest_neighbours(train, test))
        yield of_arms("linear", 0, linear(train, test))
        yield of_arms("group features only", 0, group_features_only(train, test, _facts(train)))
    yield of_arms(JOINT_RULE, 0, lowest_joint(test, joint_weight(train)))
    for error in SET_ERRORS:
        yield of_arms(f"lowest {error.replace('_', ' ')}", 0, lowest_estimate(test, f"{error}_log"))
    for size in PORTFOLIOS:
        for name, fixed in (
            (f"fixed best {size} + oracle", best_arms(train, size)),
            (f"fixed portfolio of {size} + oracle", greedy_portfolio(train, size)),
        ):
            yield of_arms(name, size, grid.measured([fixed] * count))
    yield of_arms(SELECTOR, 0, [numbers[found.trusted] for found in predictions])
    bold = [numbers[min(found.cost, key=found.cost.__getitem__)] for found in predictions]
    yield of_arms("selector, never falling back", 0, bold)
    for size in PORTFOLIOS:
        lists = [[numbers[name] for name in found.shortlist(size)] for found in predictions]
        calls = float(np.mean([len(one) for one in lists])) if size > 1 else 0
        yield of_arms(f"selector, verify={size}", calls, grid.measured(lists))
    yield of_arms(VBS, len(test.arms), grid.measured())


def _facts(table: TrainingTable) -> list[int]:
    """Columns of the features that describe the group, the state and the step, and the arm."""
    names = [*feature_names(table.metrics), "arm"]
    wanted = {*FACTS, *CONTEXT, "ratio", "one_channel", "arm"}
    return [number for number, name in enumerate(names) if name in wanted]


def in_bin(judged: Judged, low: float, high: float) -> Matrix:
    """Weights of the decisions whose ratio lies in (low, high], shape (decisions,)."""
    return ((judged.ratio > low) & (judged.ratio <= high)).astype(np.float64)
