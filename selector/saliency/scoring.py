"""Scores of a network's channels: one pass over the data, every metric that is asked for."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from selector.data.batches import Batches
from selector.data.checks import check_kind, check_model, check_names
from selector.data.exclusive import one_at_a_time
from selector.data.forward import probe_inputs
from selector.data.loss import Loss
from selector.data.own_forward import Forward
from selector.errors import SelectorError
from selector.network.hooks import without_checkpoints
from selector.network.tracing import find_groups
from selector.saliency.registry import find_metric, first_order_metrics
from selector.statistics.channel_statistics import Signals
from selector.statistics.collect import measure_signals
from selector.statistics.gradient_source import Gradients
from selector.statistics.statistic import Need

Scores = dict[str, dict[str, Tensor]]
"""Group name -> metric name -> scores of shape (channels,), float64, on the CPU."""


def score_signals(
    signals: Mapping[str, Signals], metrics: Iterable[str] | None = None
) -> dict[str, dict[str, Tensor]]:
    """Scores of every group under every metric that applies to it.

    Raises:
        SelectorError: An unknown metric, or a score that is not finite; both are named.
    """
    chosen = [find_metric(name) for name in (first_order_metrics() if metrics is None else metrics)]
    return {
        group: {m.name: m.checked(group, found) for m in chosen if m.applies(found)}
        for group, found in signals.items()
    }


def needs_of(metrics: Iterable[str]) -> frozenset[Need]:
    """What the pass must measure for these metrics."""
    return frozenset[Need]().union(*(find_metric(name).needs for name in metrics))


@one_at_a_time
def score(
    model: nn.Module,
    batches: Batches,
    metrics: Iterable[str] | None = None,
    *,
    loss: Loss | None = None,
    forward: Forward | None = None,
    generator: torch.Generator | None = None,
    gradients: Gradients = "labels",
) -> Scores:
    """Score every channel of every prunable group, in one pass over the data.

    Args:
        model: The network; left exactly as found.
        batches: Re-iterable of (inputs, targets).
        metrics: Names from `METRICS` or of the grammar; by default those of `METRICS` that one
            forward and backward pass gives. A metric that a group cannot have (a BatchNorm scale
            without BatchNorm) is left out for that group when the default was asked for.
            Metrics of weights alone read no data.
        loss: Mean loss of a batch; cross-entropy by default.
        forward: Runs the network on a batch; see `prune`.
        generator: Source of the `random` metric and, by its seed, of labels that are drawn; seeded
            with 0 by default.
        gradients: What gradient metrics differentiate. `labels`: the loss. `softened`: the
            cross-entropy of the network's own softened outputs (temperature 4) against labels
            drawn from them; targets are not needed, and gradients do not vanish where the network
            is sure of itself.

    Returns:
        Group name -> metric name -> scores of shape (channels,); the lowest are pruned first.

    Raises:
        SelectorError: Unknown metric, or one that a group cannot have although it was named;
            unusable batches; nothing prunable.
    """
    check_model(model)
    if generator is not None:
        check_kind("generator", generator, torch.Generator, "pass torch.Generator().manual_seed(0)")
    names = None if metrics is None else list(check_names("metrics", metrics))
    for name in names or ():
        find_metric(name)
    with without_checkpoints():
        groups = find_groups(model, probe_inputs(model, batches)).required()
    needs = needs_of(first_order_metrics() if names is None else names)
    signals = measure_signals(
        model, batches, groups, needs=needs, loss=loss, generator=generator, gradients=gradients
    )
    scores = score_signals(signals, names)
    for group, found in scores.items():
        missing = [name for name in names or () if name not in found]
        if missing:
            raise SelectorError(
                f"metric {missing[0]!r} needs normalisation in every group, and group {group!r} "
                "has none; leave the metric out"
            )
    return scores


def lowest(scores: Tensor, count: int) -> tuple[int, ...]:
    """The `count` channels that a metric would remove first; ties go by channel number."""
    order = torch.argsort(scores, stable=True)[:count]
    return tuple(order.sort().values.tolist())
