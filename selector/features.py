"""A decision described to the selector: named, ordered, scale-free numbers.

A decision is (group, how many channels to remove); its candidates are the sets that the arms would
remove. Facts describe the group, the context describes the network's state, and the candidate
features, the strongest, ask every metric what it thinks of every other metric's choice.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from selector.costs import Costs
from selector.groups import CONVOLUTION, Group
from selector.pairs import Pairs
from selector.scoring import lowest
from selector.signals import Run, Signals

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GroupFacts:
    """A group, whatever the metrics say of it."""

    relative_depth: float
    """Place of the root among the network's counted layers, 0 to 1."""
    log_channels: float
    """log2 of the number of removable channels."""
    relative_width: float
    """The root's outputs over those of the network's widest layer."""
    log_fan_in: float
    """log2 of the root's weights that go with one removable channel."""
    kernel: float
    """Root's kernel size, 1 for a linear layer."""
    log_positions: float
    """log2 of the positions of a channel's map at the consumers, summed over them."""
    producers: float
    consumers: float
    depthwise: float
    """Whether a depthwise convolution stands between."""
    normalised: float
    """Whether a BatchNorm stands between."""
    linear_producer: float
    linear_consumer: float
    macs_share: float
    """Share of the network's multiply-accumulates that goes when all channels go."""
    parameters_share: float
    norm_spread: float
    """Standard deviation of the filters' norms over their mean."""
    norm_skew: float
    norm_kurtosis: float
    stable_rank: float
    """Stable rank of the weight matrix over its smaller dimension, 0 to 1."""
    mean_cosine: float
    """Mean cosine between two different filters."""


@dataclass(frozen=True)
class Context:
    """The state of the network in which a decision is taken."""

    macs_kept: float
    """Share of the unpruned network's multiply-accumulates that is left, 0 to 1."""
    base_loss: float
    """Loss before the removal, in nats."""
    relative_loss: float
    """The same over that of guessing, log of the number of classes."""
    log_outputs: float
    """log2 of the number of classes."""
    log_images: float
    """log2 of the number of images behind the signals."""


@dataclass(frozen=True, eq=False)
class Decision:
    """What the selector is asked: which arm's `count` lowest channels should go?"""

    facts: GroupFacts
    context: Context
    scores: Mapping[str, Matrix]
    """Metric -> scores of shape (channels,)."""
    count: int
    pairs: Mapping[str, Pairs] = field(default_factory=dict)
    """Mode of removal -> what every two channels do together; empty in records of old."""


FACTS = tuple(field.name for field in fields(GroupFacts))
CONTEXT = tuple(field.name for field in fields(Context))


def describe_run(run: Run, macs_kept: float) -> Context:
    """The context of all decisions of one pass over the data."""
    classes = max(run.outputs, 2)
    return Context(
        macs_kept=macs_kept,
        base_loss=run.loss,
        relative_loss=run.loss / math.log(classes),
        log_outputs=math.log2(classes),
        log_images=math.log2(run.images),
    )


def describe_group(model: nn.Module, group: Group, costs: Costs, signals: Signals) -> GroupFacts:
    """The facts of a group, from the network's layers, their costs, and the weights."""
    layers = list(costs.layers)
    root = model.get_submodule(group.name)
    consumers = [model.get_submodule(name) for name in group.consumers]
    between = [model.get_submodule(name) for name in group.between]
    kernel = math.prod(root.kernel_size) ** 0.5 if isinstance(root, CONVOLUTION) else 1.0
    return GroupFacts(
        relative_depth=layers.index(group.name) / max(1, len(layers) - 1),
        log_channels=math.log2(group.channels),
        relative_width=costs.layers[group.name].outputs
        / max(layer.outputs for layer in costs.layers.values()),
        log_fan_in=math.log2(costs.layers[group.name].weights / group.channels),
        kernel=kernel,
        log_positions=math.log2(signals.at_consumers.positions),
        producers=float(len(group.producers)),
        consumers=float(len(group.consumers)),
        depthwise=float(any(isinstance(layer, CONVOLUTION) for layer in between)),
        normalised=float(signals.normalisation_scale is not None),
        linear_producer=float(isinstance(root, nn.Linear)),
        linear_consumer=float(any(isinstance(layer, nn.Linear) for layer in consumers)),
        macs_share=group.macs_per_channel * group.channels / costs.total("macs"),
        parameters_share=group.parameters_per_channel * group.channels / costs.total("parameters"),
        **_weight_statistics(signals.weight),
    )


def _weight_statistics(weight: torch.Tensor) -> dict[str, float]:
    norms = weight.norm(dim=1)
    centred = norms - norms.mean()
    deviation = float(centred.square().mean().sqrt())
    tiny = deviation <= 1e-12 * float(norms.mean())
    directions = weight / norms.clamp_min(1e-30)[:, None]
    count = len(weight)
    cosines = float(directions.sum(0).square().sum() - directions.square().sum())
    largest = float(torch.linalg.matrix_norm(weight, 2))
    return {
        "norm_spread": deviation / max(float(norms.mean()), 1e-30),
        "norm_skew": 0.0 if tiny else float((centred / deviation).pow(3).mean()),
        "norm_kurtosis": 0.0 if tiny else float((centred / deviation).pow(4).mean()),
        "stable_rank": float(norms.square().sum())
        / max(largest**2, 1e-30)
        / min(count, weight.shape[1]),
        "mean_cosine": cosines / max(1, count * (count - 1)),
    }


def feature_names(metrics: Sequence[str]) -> list[str]:
    """Names of the columns of `describe`, in order."""
    return [
        *FACTS,
        *CONTEXT,
        "ratio",
        "one_channel",
        *(f"own_{name}" for name in _OWN),
        "votes",
        "mean_overlap",
        "log_taylor",
        "log_fisher",
        "log_second_order",
        *(f"share_{metric}" for metric in metrics),
        *(f"excess_{metric}" for metric in metrics),
        *(f"agreement_{metric}" for metric in metrics),
    ]


_OWN = ("spread", "skew", "tail", "gini", "cliff")


def candidates(decision: Decision, arms: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """What each arm that the group has would remove: its `count` lowest channels."""
    return {
        arm: lowest(torch.from_numpy(decision.scores[arm]), decision.count)
        for arm in arms
        if arm in decision.scores
    }


def distinct(proposals: Mapping[str, tuple[int, ...]], order: Iterable[str]) -> list[str]:
    """The arms in this order, without those that propose the same channels as an earlier one."""
    first: dict[tuple[int, ...], str] = {}
    for arm in order:
        first.setdefault(proposals[arm], arm)
    return list(first.values())


def describe(
    decision: Decision, proposals: Mapping[str, tuple[int, ...]], metrics: Sequence[str]
) -> Matrix:
    """One row of features for every arm's proposal, shape (arms, features), in their order.

    Shares are relative to the part of the channels that goes: 1 is what a random set would take of
    that metric's total, less is better. A metric that the group lacks gives NaN.
    """
    channels = len(next(iter(decision.scores.values())))
    ratio = decision.count / channels
    chosen = np.zeros((len(proposals), channels))
    for row, channel_set in enumerate(proposals.values()):
        chosen[row, list(channel_set)] = 1.0
    fixed = [*asdict(decision.facts).values(), *asdict(decision.context).values()]
    shared = np.tile(np.array([*fixed, ratio, float(decision.count == 1)]), (len(proposals), 1))
    own = np.array([_distribution(decision.scores[arm], decision.count) for arm in proposals])
    overlap = chosen @ chosen.T / decision.count
    votes = (overlap > 1 - 1e-9).mean(1, keepdims=True)
    shares, excesses, agreements = (np.full((len(proposals), len(metrics)), np.nan) for _ in "123")
    ranks = {name: _ranks(decision.scores[name]) for name in metrics if name in decision.scores}
    for column, metric in enumerate(metrics):
        if metric in decision.scores:
            values = decision.scores[metric]
            part = values / max(float(values.sum()), 1e-300)
            least = float(np.sort(part)[: decision.count].sum())
            shares[:, column] = chosen @ part / ratio
            excesses[:, column] = shares[:, column] - least / ratio
            agreements[:, column] = [ranks[metric] @ ranks[arm] for arm in proposals]
    damage = np.stack([_log_total(decision.scores, chosen, name) for name in _NATS], 1)
    rest = [overlap.mean(1, keepdims=True), damage, shares, excesses, agreements]
    return np.concatenate([shared, own, votes, *rest], 1)


_NATS = ("taylor", "fisher", "taylor_elementwise")
"""Metrics that are in nats themselves: their totals forecast the damage."""


def _log_total(scores: Mapping[str, Matrix], chosen: Matrix, name: str) -> Matrix:
    if name not in scores:
        return np.full(len(chosen), np.nan)
    logs: Matrix = np.log10(chosen @ scores[name] + 1e-8)
    return logs


def _ranks(values: Matrix) -> Matrix:
    """Ranks, centred and of unit length, so that a product of two is Spearman's correlation."""
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(np.float64)
    order -= order.mean()
    unit: Matrix = order / max(float(np.linalg.norm(order)), 1e-12)
    return unit


def _distribution(values: Matrix, count: int) -> list[float]:
    """How a metric's scores are spread, and how clearly they part what goes from what stays."""
    ordered = np.sort(values)
    mean, deviation = float(ordered.mean()), float(ordered.std())
    scale = max(mean, 1e-300)
    skew = float(((ordered - mean) ** 3).mean()) / max(deviation**3, 1e-300)
    number = len(ordered)
    weights = 2 * np.arange(1, number + 1) - number - 1
    gini = float((weights * ordered).sum()) / max(number * float(ordered.sum()), 1e-300)
    cliff = (ordered[min(count, number - 1)] - ordered[count - 1]) / max(deviation, 1e-300)
    return [deviation / scale, skew, float(ordered[-1]) / scale, gini, float(cliff)]
