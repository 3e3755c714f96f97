"""Scores of a network's channels: one pass over the data, every metric of the table."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from selector.errors import SelectorError
from selector.objective import Loss
from selector.reading import Batches, probe_inputs
from selector.saliency import METRICS, find_metric
from selector.signals import Signals, measure_signals
from selector.tracing import find_groups

Scores = dict[str, dict[str, Tensor]]
"""Group name -> metric name -> scores of shape (channels,), float64, on the CPU."""


def score_signals(
    signals: Mapping[str, Signals], metrics: Iterable[str] | None = None
) -> dict[str, dict[str, Tensor]]:
    """Scores of every group under every metric that applies to it.

    Raises:
        SelectorError: An unknown metric, or a score that is not finite; both are named.
    """
    chosen = [find_metric(name) for name in (METRICS if metrics is None else metrics)]
    scores: dict[str, dict[str, Tensor]] = {}
    for group, found in signals.items():
        scores[group] = {m.name: m.score(found) for m in chosen if m.applies(found)}
        for name, values in scores[group].items():
            if not bool(torch.isfinite(values).all()):
                raise SelectorError(
                    f"metric {name!r} gives a score that is not finite in group {group!r}; "
                    "check the network's weights there"
                )
    return scores


def score(
    model: nn.Module,
    batches: Batches,
    metrics: Iterable[str] | None = None,
    *,
    loss: Loss | None = None,
    generator: torch.Generator | None = None,
) -> Scores:
    """Score every channel of every prunable group, in one pass over the data.

    Args:
        model: The network; left exactly as found.
        batches: Re-iterable of (inputs, targets).
        metrics: Names from `METRICS`; all by default. A metric that a group cannot have (a
            BatchNorm scale without BatchNorm) is left out for that group when all were asked for.
        loss: Mean loss of a batch; cross-entropy by default.
        generator: Source of the `random` metric; seeded with 0 by default.

    Returns:
        Group name -> metric name -> scores of shape (channels,); the lowest are pruned first.

    Raises:
        SelectorError: Unknown metric, or one that a group cannot have although it was named;
            unusable batches; nothing prunable.
    """
    names = None if metrics is None else list(metrics)
    for name in names or ():
        find_metric(name)
    groups = find_groups(model, probe_inputs(model, batches)).required()
    signals = measure_signals(model, batches, groups, loss=loss, generator=generator)
    scores = score_signals(signals, names)
    for group, found in scores.items():
        missing = [name for name in names or () if name not in found]
        if missing:
            raise SelectorError(
                f"metric {missing[0]!r} needs {METRICS[missing[0]].needs} in every group, and "
                f"group {group!r} has none; leave the metric out"
            )
    return scores


def lowest(scores: Tensor, count: int) -> tuple[int, ...]:
    """The `count` channels that a metric would remove first; ties go by channel number."""
    order = torch.argsort(scores, stable=True)[:count]
    return tuple(sorted(int(channel) for channel in order))
