"""What a decision is about: the group, the network's state, the metrics' scores, how many go.

A decision is (group, how many channels to remove). Facts describe the group, the context describes
the network's state; features.py makes the numbers of it that the selector learns from.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import nn

from selector.costs import Costs
from selector.groups import CONVOLUTION, Group
from selector.pairs import Matrix, Pairs
from selector.signals import Run, Signals


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
