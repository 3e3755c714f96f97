"""Features of a decision: named, ordered, scale-free numbers, one row for each candidate.

The candidates of a decision are the sets that the arms would remove. Their features, the strongest,
ask every metric what it thinks of every other metric's choice, and the pairs of channels what each
choice would do to the loss as a whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selector.learning.regret import regrets
from selector.records.decision import (
    CONTEXT,
    FACTS,
    SET_ERRORS,
    Decision,
    GroupView,
    SetKnowledge,
)
from selector.statistics.gate_fisher import MODES, Pairs
from selector.typing import Matrix, Numbers

TINY = 1e-300

_OWN = ("spread", "skew", "tail", "gini", "cliff")
_NATS = ("taylor", "fisher", "taylor_elementwise")
"""Metrics that are in nats themselves: their totals forecast the damage."""
_ERRORS = ("log", "excess", "regret")
"""Of each of `SET_ERRORS`: its logarithm, the same over the least, and the regret it implies."""
_JOINT = ("log_second", "signed", "interaction", "log_excess", "regret", "second_regret")
_OVERLAPS = ("votes", "mean_overlap")


Proposals = Mapping[str, tuple[int, ...]]
"""Arm -> the channels that it would remove."""


def feature_names(metrics: Sequence[str]) -> list[str]:
    """Names of the columns of `describe`, in order."""
    return [
        *FACTS,
        *CONTEXT,
        "ratio",
        "one_channel",
        *(f"own_{name}" for name in _OWN),
        *_OVERLAPS,
        *(f"log_{metric}" for metric in _NATS),
        *(f"regret_{metric}" for metric in _NATS),
        *(f"{mode}_{name}" for mode in MODES for name in _JOINT),
        *(f"{error}_{name}" for error in SET_ERRORS for name in _ERRORS),
        "mean_excess",
        "rank_of_excess",
        *(f"share_{metric}" for metric in metrics),
        *(f"excess_{metric}" for metric in metrics),
        *(f"agreement_{metric}" for metric in metrics),
    ]


def removal_order(view: GroupView, arm: str) -> Numbers:
    """The group's channels, the arm's lowest score first; ties go by channel number.

    Sorted once for each view and arm.
    """
    key = ("order", arm)
    if key not in view.derived:
        view.derived[key] = np.argsort(view.scores[arm], kind="stable")
    order: Numbers = view.derived[key]
    return order


def lowest_sets(
    scores: Mapping[str, Matrix], arms: Iterable[str], count: int
) -> dict[str, tuple[int, ...]]:
    """The `count` lowest channels of each arm that has scores; ties go by channel number."""
    orders = {arm: np.argsort(scores[arm], kind="stable") for arm in arms if arm in scores}
    return {arm: tuple(np.sort(order[:count]).tolist()) for arm, order in orders.items()}


def candidates(decision: Decision, arms: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """What each arm that the group has would remove: its `count` lowest channels, or its set.

    Args:
        decision: What is asked.
        arms: Metrics and proposals of sets.
    """
    view, count = decision.view, decision.count
    sets = view.sets.proposed(count) if view.sets is not None else {}
    found = {}
    for arm in arms:
        if arm in view.scores:
            found[arm] = tuple(np.sort(removal_order(view, arm)[:count]).tolist())
        elif arm in sets:
            found[arm] = sets[arm]
    return found


def distinct(proposals: Proposals, order: Iterable[str]) -> list[str]:
    """The arms in this order, without those that propose the same channels as an earlier one."""
    first: dict[tuple[int, ...], str] = {}
    for arm in order:
        first.setdefault(proposals[arm], arm)
    return list(first.values())


@dataclass(frozen=True, eq=False)
class Opinions:
    """What the metrics say about a group's channels, whatever number of them goes."""

    parts: Matrix
    """Every metric's scores over their total, (metrics, channels); NaN where the group lacks it."""
    least: Matrix
    """Lowest total of that for 0, 1, 2, ... channels, (metrics, channels + 1)."""
    agreement: Matrix
    """Rank correlation of every two metrics, (metrics, metrics); 0 with one that is constant."""
    ordered: Matrix
    """Every metric's scores, ascending, (metrics, channels)."""
    deviation: Matrix
    """Their standard deviation, (metrics,)."""
    spread: Matrix
    """How they are spread: deviation and highest over the mean, skew, Gini; (metrics, 4)."""

    @classmethod
    def of(cls, scores: Mapping[str, Matrix], metrics: Sequence[str]) -> "Opinions":
        """The opinions of these metrics."""
        channels = len(next(iter(scores.values())))
        table = np.array([scores.get(name, np.full(channels, np.nan)) for name in metrics])
        parts = table / np.maximum(table.sum(1, keepdims=True), TINY)
        least = np.zeros((len(metrics), channels + 1))
        least[:, 1:] = np.cumsum(np.sort(parts, 1), 1)
        ranks = _ranks(table) - (channels + 1) / 2
        ranks /= np.maximum(np.linalg.norm(ranks, axis=1, keepdims=True), 1e-12)
        ordered = np.sort(table, 1)
        deviation, spread = _spread(ordered)
        return cls(parts, least, ranks @ ranks.T, ordered, deviation, spread)

    def distribution(self, rows: Sequence[int], count: int) -> Matrix:
        """How some metrics' scores are spread, and how clearly what goes is separate from the rest.

        Args:
            rows: The metrics, by number.
            count: Channels that go.

        Returns:
            Shape (metrics, 5), in the order of the features.
        """
        first_left = min(count, self.ordered.shape[1] - 1)
        step = self.ordered[rows, first_left] - self.ordered[rows, count - 1]
        cliff = step / np.maximum(self.deviation[rows], TINY)
        return np.concatenate([self.spread[rows], cliff[:, None]], 1)


def opinions_of(view: GroupView, metrics: Sequence[str]) -> Opinions:
    """The opinions of these metrics on a group; computed once for each view."""
    key = ("opinions", *metrics)
    if key not in view.derived:
        view.derived[key] = Opinions.of(view.scores, metrics)
    opinions: Opinions = view.derived[key]
    return opinions


def describe(decision: Decision, proposals: Proposals, metrics: Sequence[str]) -> Matrix:
    """One row of features for every arm's proposal, shape (arms, features), in their order.

    Shares are relative to the part of the channels that goes: 1 is what a random set would take of
    that metric's total, less is better. What the group lacks gives NaN.

    Args:
        decision: What is asked.
        proposals: Arm -> the channels that it would remove.
        metrics: Metrics whose opinion on every proposal is a feature; all arms that rank channels
            are among them. Those that propose sets have no scores: what is told of scores is NaN.
    """
    opinions = opinions_of(decision.view, metrics)
    channels = opinions.parts.shape[1]
    ratio = decision.count / channels
    chosen = np.zeros((len(proposals), channels))
    for row, channel_set in enumerate(proposals.values()):
        chosen[row, list(channel_set)] = 1.0
    fixed = [*vars(decision.facts).values(), *vars(decision.context).values()]
    shared = np.tile(np.array([*fixed, ratio, float(decision.count == 1)]), (len(proposals), 1))
    overlap = chosen @ chosen.T / decision.count
    overlaps = np.stack([(overlap > 1 - 1e-9).mean(1), overlap.mean(1)], 1)
    shares = chosen @ opinions.parts.T / ratio
    excesses = shares - opinions.least[:, decision.count] / ratio
    ranking = [place for place, arm in enumerate(proposals) if arm in decision.scores]
    rows = [metrics.index(arm) for arm in proposals if arm in decision.scores]
    own = np.full((len(proposals), len(_OWN)), np.nan)
    own[ranking] = opinions.distribution(rows, decision.count)
    agreement = np.full((len(proposals), len(metrics)), np.nan)
    agreement[ranking] = opinions.agreement[rows]
    known = ~np.isnan(opinions.parts[:, 0])
    mean_excess = np.log10(excesses[:, known] + 1e-4).mean(1)
    # Arms with the same proposal differ by rounding alone.
    ranks = (_ranks(np.round(mean_excess, 9)) - 1) / max(1, len(proposals) - 1)
    parts = [shared, own, overlaps, _damages(decision.scores, chosen)]
    parts += [_together(decision.pairs.get(mode), chosen) for mode in MODES]
    parts.append(_set_errors(decision.view.sets, proposals))
    parts += [np.stack([mean_excess, ranks], 1), shares, excesses, agreement]
    return np.concatenate(parts, 1)


def _ranks(values: Matrix) -> Matrix:
    """Ranks along the last axis, from 1; equal values share the mean of theirs, NaN stays NaN."""
    from scipy.stats import rankdata

    ranks: Matrix = rankdata(values, axis=-1)
    return ranks


def _damages(scores: Mapping[str, Matrix], chosen: Matrix) -> Matrix:
    """Totals of the metrics that are in nats: their logarithms, and the regrets that they imply."""
    none = np.full(chosen.shape[1], np.nan)
    nats = np.stack([scores.get(name, none) for name in _NATS]) @ chosen.T
    return np.concatenate([np.log10(nats + 1e-8), regrets(nats)]).T


def _together(pairs: Pairs | None, chosen: Matrix) -> Matrix:
    """What every choice does as a whole, by first and second order, in one mode of removal."""
    if pairs is None:
        return np.full((len(chosen), len(_JOINT)), np.nan)
    first, square = pairs.of_sets(chosen)
    second = square / 2
    alone = chosen @ pairs.squares / 2
    return np.stack(
        [
            np.log10(second + 1e-8),
            first / np.sqrt(np.maximum(square, TINY)),
            np.log10((second + 1e-12) / (alone + 1e-12)),
            np.log10((second + 1e-8) / (second.min() + 1e-8)),
            *regrets(np.stack([second - first, second])),
        ],
        1,
    )


def _set_errors(known: SetKnowledge | None, proposals: Proposals) -> Matrix:
    """What views that read no labels say of every proposal's set, three features an error."""
    if known is None:
        return np.full((len(proposals), len(SET_ERRORS) * len(_ERRORS)), np.nan)
    errors = known.errors(proposals).T
    least = errors.min(1, keepdims=True)
    found = [
        np.log10(errors + 1e-8),
        np.log10((errors + 1e-8) / (least + 1e-8)),
        regrets(errors),
    ]
    # Error by error, as the features are named.
    return np.stack(found, 1).reshape(-1, len(proposals)).T


def _spread(ordered: Matrix) -> tuple[Matrix, Matrix]:
    """Standard deviations, and the rest of how scores are spread; of ascending scores, by row."""
    mean, deviation = ordered.mean(1), ordered.std(1)
    number = ordered.shape[1]
    scale = np.maximum(mean, TINY)
    skew = ((ordered - mean[:, None]) ** 3).mean(1) / np.maximum(deviation**3, TINY)
    weights = 2 * np.arange(1, number + 1) - number - 1
    gini = (weights * ordered).sum(1) / np.maximum(number * ordered.sum(1), TINY)
    return deviation, np.stack([deviation / scale, skew, ordered[:, -1] / scale, gini], 1)
