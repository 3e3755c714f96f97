"""`describe_network`: what the selector sees of a network, in pruning as in recording."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from selector.data.calibration import Calibration
from selector.network.tracing import Groups
from selector.records.decision import GroupView
from selector.records.describe import ScoredMetric, describe_groups, describing_needs
from selector.saliency.proposals.knowledge import known_sets, needs_of_sets
from selector.saliency.proposals.registry import Proposal
from selector.statistics.channel_statistics import Signals
from selector.statistics.collect import asked_with, measure_sources
from selector.statistics.gradient_source import Gradients


def describe_network(
    model: nn.Module,
    groups: Groups,
    calibration: Calibration,
    metrics: Sequence[ScoredMetric],
    proposals: Sequence[Proposal] = (),
    *,
    macs_kept: float,
    seed: int = 0,
) -> dict[str, GroupView]:
    """Every prunable group as records keep it and the selector sees it.

    One forward pass over the data and one backward pass of the loss, from which all scores come;
    with proposals one more backward pass, of the softened outputs. This is the only way in which a
    network is described, in recording and in pruning.

    Args:
        model: The network; left exactly as found.
        groups: Its groups and costs.
        calibration: The images that score.
        metrics: Those that score every group that has what they need.
        proposals: Those of whole sets that are asked; without any, nothing is known of sets.
        macs_kept: Share of the unpruned network's multiply-accumulates that is left.
        seed: Of the `random` metric, and of the labels that softened outputs draw.

    Returns:
        Group name -> the group described.

    Raises:
        SelectorError: As `measure_signals`.
    """
    needs = needs_of_sets(model, calibration, proposals) if proposals else {}
    of_loss = describing_needs(metrics) | needs.pop("labels", frozenset())
    asked = asked_with({"labels": of_loss, **needs}, seed)
    measured = measure_sources(model, calibration, groups.prunable, asked, loss=calibration.loss)
    views = describe_groups(model, groups, measured["labels"], metrics, macs_kept=macs_kept)
    return _with_sets(views, measured, proposals) if proposals else views


def describe_by_sets(
    model: nn.Module,
    groups: Groups,
    calibration: Calibration,
    metrics: Sequence[ScoredMetric],
    proposals: Sequence[Proposal],
    *,
    macs_kept: float,
    seed: int = 0,
) -> dict[str, GroupView]:
    """Every prunable group by what proposals of sets need.

    One forward pass over the data and one backward pass, for a choice among these alone. What pairs
    of channels do to the loss is left out.

    Args:
        model: The network; left exactly as found.
        groups: Its groups and costs.
        calibration: The images.
        metrics: Those that read weights alone.
        proposals: Those of whole sets that are asked, one at least.
        macs_kept: Share of the unpruned network's multiply-accumulates that is left.
        seed: Of the labels that softened outputs draw.

    Returns:
        Group name -> the group described.

    Raises:
        SelectorError: As `measure_signals`.
    """
    asked = asked_with(needs_of_sets(model, calibration, proposals), seed)
    measured = measure_sources(model, calibration, groups.prunable, asked, loss=calibration.loss)
    signals = next(iter(measured.values()))
    views = describe_groups(model, groups, signals, metrics, macs_kept=macs_kept)
    alone = {name: replace(view, pairs={}) for name, view in views.items()}
    return _with_sets(alone, measured, proposals)


def _with_sets(
    views: Mapping[str, GroupView],
    measured: Mapping[Gradients, Mapping[str, Signals]],
    proposals: Sequence[Proposal],
) -> dict[str, GroupView]:
    sets = known_sets(measured, proposals)
    return {name: replace(view, sets=sets[name]) for name, view in views.items()}
