"""Every group of a network as records keep it and the selector sees it, from one pass's signals."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy
import torch
from torch import Tensor, nn

from selector.network.costs import Costs
from selector.network.groups import Group
from selector.network.layers import CONVOLUTION
from selector.network.tracing import Groups
from selector.records.decision import Context, GroupFacts, GroupView
from selector.statistics.channel_statistics import PassSummary, Signals
from selector.statistics.statistic import PAIRS, Need


class ScoredMetric(Protocol):
    """What describing needs of a saliency metric; those of the registry have it."""

    @property
    def name(self) -> str:
        """Its name in the records."""

    @property
    def needs(self) -> frozenset[Need]:
        """What the pass must measure for it."""

    def applies(self, signals: Signals) -> bool:
        """Whether the group has what the metric needs."""

    def checked(self, group: str, signals: Signals) -> Tensor:
        """One finite score for each channel, shape (channels,), float64."""


def describing_needs(metrics: Iterable[ScoredMetric]) -> frozenset[Need]:
    """What a pass must measure so that groups can be described with these metrics' scores."""
    return PAIRS.union(*(metric.needs for metric in metrics))


def describe_groups(
    model: nn.Module,
    groups: Groups,
    signals: Mapping[str, Signals],
    metrics: Sequence[ScoredMetric],
    *,
    macs_kept: float,
) -> dict[str, GroupView]:
    """Every prunable group as records keep it and the selector sees it.

    Args:
        model: The network.
        groups: Its groups and costs.
        signals: Group -> what a pass showed of it, with gradients of the loss.
        metrics: Those that score every group that has what they need.
        macs_kept: Share of the unpruned network's multiply-accumulates that is left.

    Returns:
        Group name -> the group described.
    """
    return {
        name: _described(model, group, groups, signals[name], metrics, macs_kept)
        for name, group in groups.prunable.items()
    }


def _described(
    model: nn.Module,
    group: Group,
    groups: Groups,
    signals: Signals,
    metrics: Sequence[ScoredMetric],
    macs_kept: float,
) -> GroupView:
    assert signals.run is not None
    return GroupView(
        facts=describe_group(model, group, groups.costs, signals),
        context=describe_run(signals.run, macs_kept),
        scores={
            metric.name: metric.checked(group.name, signals).numpy()
            for metric in metrics
            if metric.applies(signals)
        },
        pairs=signals.pairs,
    )


def describe_run(run: PassSummary, macs_kept: float) -> Context:
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
    count = len(weight)
    together = (1 / norms.clamp_min(1e-30)) @ weight
    # Every filter that is not zero has a direction of length one.
    cosines = float(together.square().sum()) - int((norms > 0).sum())
    return {
        "norm_spread": deviation / max(float(norms.mean()), 1e-30),
        "norm_skew": 0.0 if tiny else float((centred / deviation).pow(3).mean()),
        "norm_kurtosis": 0.0 if tiny else float((centred / deviation).pow(4).mean()),
        "stable_rank": float(norms.square().sum())
        / max(_largest_square(weight), 1e-30)
        / min(count, weight.shape[1]),
        "mean_cosine": cosines / max(1, count * (count - 1)),
    }


def _largest_square(weight: torch.Tensor) -> float:
    """The largest singular value of a matrix, squared.

    Of wide layers by Lanczos' method, from 4 million weights on to five digits.
    """
    if len(weight) > weight.shape[1]:
        weight = weight.T
    if len(weight) <= 256:
        return float(torch.linalg.eigvalsh(weight @ weight.T)[-1])
    from scipy.sparse.linalg import LinearOperator, eigsh  # Slow to import.

    large = weight.numel() > 2**22
    matrix = (weight.float() if large else weight).numpy()
    if not matrix.any():
        return 0.0
    size = len(matrix)
    gram = LinearOperator((size, size), lambda v: matrix @ (matrix.T @ v), dtype=matrix.dtype)
    # A fixed start: the same weights have the same description.
    start = (1.0 + numpy.arange(size) % 7).astype(matrix.dtype)
    tolerance = 1e-4 if large else 0.0
    found = eigsh(gram, k=1, v0=start, tol=tolerance, return_eigenvectors=False)
    return float(found[0])
