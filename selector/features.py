"""A decision described to the selector: named, ordered, scale-free numbers, a row a candidate.

The candidates of a decision are the sets that the arms would remove. Their features, the strongest,
ask every metric what it thinks of every other metric's choice, and the pairs of channels what each
choice would do to the loss as a whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from selector.facts import CONTEXT, FACTS, Decision
from selector.pairs import MODES, Matrix, Pairs
from selector.scoring import lowest

TINY = 1e-300
FLOOR_NATS = 0.002
"""Added to the spread of a decision's arms, so that decisions without a difference stay small."""

_OWN = ("spread", "skew", "tail", "gini", "cliff")
_NATS = ("taylor", "fisher", "taylor_elementwise")
"""Metrics that are in nats themselves: their totals forecast the damage."""
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
        "mean_excess",
        "rank_of_excess",
        *(f"share_{metric}" for metric in metrics),
        *(f"excess_{metric}" for metric in metrics),
        *(f"agreement_{metric}" for metric in metrics),
    ]


def candidates(decision: Decision, arms: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """What each arm that the group has would remove: its `count` lowest channels."""
    return {
        arm: lowest(torch.from_numpy(decision.scores[arm]), decision.count)
        for arm in arms
        if arm in decision.scores
    }


def distinct(proposals: Proposals, order: Iterable[str]) -> list[str]:
    """The arms in this order, without those that propose the same channels as an earlier one."""
    first: dict[tuple[int, ...], str] = {}
    for arm in order:
        first.setdefault(proposals[arm], arm)
    return list(first.values())


def normalised(nats: Matrix) -> Matrix:
    """Regret over the spread of the decision: (nats - best) / (median - best + 0.002 nats)."""
    best = nats.min()
    regrets: Matrix = (nats - best) / (np.median(nats) - best + FLOOR_NATS)
    return regrets


@dataclass(frozen=True, eq=False)
class Opinions:
    """What the metrics say of a group's channels, whatever number of them goes."""

    parts: Matrix
    """Every metric's scores over their total, (metrics, channels); NaN where the group lacks it."""
    least: Matrix
    """Lowest total of that for 0, 1, 2, ... channels, (metrics, channels + 1)."""
    agreement: Matrix
    """Rank correlation of every two metrics, (metrics, metrics)."""

    @classmethod
    def of(cls, scores: Mapping[str, Matrix], metrics: Sequence[str]) -> "Opinions":
        """The opinions of these metrics."""
        channels = len(next(iter(scores.values())))
        table = np.array([scores.get(name, np.full(channels, np.nan)) for name in metrics])
        parts = table / np.maximum(table.sum(1, keepdims=True), TINY)
        least = np.zeros((len(metrics), channels + 1))
        least[:, 1:] = np.cumsum(np.sort(parts, 1), 1)
        ranks = np.argsort(np.argsort(table, 1, kind="stable"), 1, kind="stable") - (
            (channels - 1) / 2
        )
        ranks = np.where(np.isnan(table), np.nan, ranks)
        ranks /= np.maximum(np.linalg.norm(ranks, axis=1, keepdims=True), 1e-12)
        return cls(parts, least, ranks @ ranks.T)


def describe(
    decision: Decision,
    proposals: Proposals,
    metrics: Sequence[str],
    opinions: Opinions | None = None,
) -> Matrix:
    """One row of features for every arm's proposal, shape (arms, features), in their order.

    Shares are relative to the part of the channels that goes: 1 is what a random set would take of
    that metric's total, less is better. What the group lacks gives NaN.

    Args:
        decision: What is asked.
        proposals: Arm -> the channels that it would remove.
        metrics: Metrics whose opinion on every proposal is a feature; the arms are among them.
        opinions: `Opinions.of` the decision's scores and these metrics, where they are at hand.
    """
    said = opinions or Opinions.of(decision.scores, metrics)
    channels = said.parts.shape[1]
    ratio = decision.count / channels
    chosen = np.zeros((len(proposals), channels))
    for row, channel_set in enumerate(proposals.values()):
        chosen[row, list(channel_set)] = 1.0
    fixed = [*asdict(decision.facts).values(), *asdict(decision.context).values()]
    shared = np.tile(np.array([*fixed, ratio, float(decision.count == 1)]), (len(proposals), 1))
    own = np.array([_distribution(decision.scores[arm], decision.count) for arm in proposals])
    overlap = chosen @ chosen.T / decision.count
    overlaps = np.stack([(overlap > 1 - 1e-9).mean(1), overlap.mean(1)], 1)
    shares = chosen @ said.parts.T / ratio
    excesses = shares - said.least[:, decision.count] / ratio
    rows = [metrics.index(arm) for arm in proposals]
    known = ~np.isnan(said.parts[:, 0])
    mean_excess = np.log10(excesses[:, known] + 1e-4).mean(1)
    ranks = np.argsort(np.argsort(mean_excess)) / max(1, len(proposals) - 1)
    parts = [shared, own, overlaps, _damages(decision.scores, chosen)]
    parts += [_together(decision.pairs.get(mode), chosen) for mode in MODES]
    parts += [np.stack([mean_excess, ranks], 1), shares, excesses, said.agreement[rows]]
    return np.concatenate(parts, 1)


def _damages(scores: Mapping[str, Matrix], chosen: Matrix) -> Matrix:
    """Totals of the metrics that are in nats: their logarithms, and the regrets that they imply."""
    logs, regrets = np.full((2, len(_NATS), len(chosen)), np.nan)
    for row, name in enumerate(_NATS):
        if name in scores:
            nats = chosen @ scores[name]
            logs[row], regrets[row] = np.log10(nats + 1e-8), normalised(nats)
    return np.concatenate([logs, regrets]).T


def _together(pairs: Pairs | None, chosen: Matrix) -> Matrix:
    """What every choice does as a whole, by first and second order, in one mode of removal."""
    if pairs is None:
        return np.full((len(chosen), len(_JOINT)), np.nan)
    first, square = pairs.of_sets(chosen)
    second = square / 2
    alone = chosen @ np.diag(pairs.second) / 2
    return np.stack(
        [
            np.log10(second + 1e-8),
            first / np.sqrt(np.maximum(square, TINY)),
            np.log10((second + 1e-12) / (alone + 1e-12)),
            np.log10((second + 1e-8) / (second.min() + 1e-8)),
            normalised(second - first),
            normalised(second),
        ],
        1,
    )


def _distribution(values: Matrix, count: int) -> list[float]:
    """How a metric's scores are spread, and how clearly they part what goes from what stays."""
    ordered = np.sort(values)
    mean, deviation = float(ordered.mean()), float(ordered.std())
    scale = max(mean, TINY)
    skew = float(((ordered - mean) ** 3).mean()) / max(deviation**3, TINY)
    number = len(ordered)
    weights = 2 * np.arange(1, number + 1) - number - 1
    gini = float((weights * ordered).sum()) / max(number * float(ordered.sum()), TINY)
    cliff = (ordered[min(count, number - 1)] - ordered[count - 1]) / max(deviation, TINY)
    return [deviation / scale, skew, float(ordered[-1]) / scale, gini, float(cliff)]
