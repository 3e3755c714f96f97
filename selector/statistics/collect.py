"""One forward and backward pass over the data -> the signals of every group, in bounded memory.

Batch by batch: nothing is kept of a batch but sums. Hooks, gradients and flags are gone afterwards.
What is expensive (second order, whole maps, flows) is measured only when a metric's needs name it.

Passes over the data: none for weights alone (`flow` reads the first batch), one otherwise, two with
`hessian`. `check_batches` starts one more reading and stops at the first batch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selector.data.batches import Batches, check_batches
from selector.data.forward import device_of, evaluating, probe_inputs
from selector.data.loss import Loss, Objective
from selector.network.copying import uncompiled
from selector.network.groups import Group
from selector.network.hooks import without_checkpoints
from selector.network.layers import weight_of
from selector.statistics import built_in as built_in
from selector.statistics.accumulators import GroupSums
from selector.statistics.assembling import ByLayer, signals_of
from selector.statistics.channel_statistics import Signals
from selector.statistics.curvature import flow_gradients, hessian_times
from selector.statistics.gradient_source import Gradients, gradient_source
from selector.statistics.leaves import only_trained
from selector.statistics.pass_state import PassState
from selector.statistics.passes import DataPass, SourceSums, measuring
from selector.statistics.statistic import (
    PASSES,
    Need,
    Statistic,
    checked_needs,
    closure,
    first_order_needs,
    statistics_for,
)
from selector.statistics.weights import bare_parameters


def measure_signals(
    model: nn.Module,
    batches: Batches,
    groups: Mapping[str, Group],
    *,
    needs: Iterable[Need] | None = None,
    loss: Loss | None = None,
    generator: torch.Generator | None = None,
    gradients: Gradients = "labels",
) -> dict[str, Signals]:
    """Collect the signals of all groups in one pass; the model is left exactly as found.

    Args:
        model: The network; run in evaluation mode.
        batches: Re-iterable of (inputs, targets). Splitting the same images into other batches
            changes nothing but rounding.
        groups: Group name -> group.
        needs: What the metrics need, passes or statistics; all that is of first order by default.
        loss: Mean loss of a batch; cross-entropy by default.
        generator: Source of the `random` signal and, by its seed, of the signs that the curvature
            is estimated with, and of labels that are drawn; seeded with 0 by default.
        gradients: `labels`: of the loss; `softened`: of the network's own softened outputs, which
            needs no labels; see `gradient_source`.

    Raises:
        SelectorError: Unusable batches, weights or needs, a loss that is not finite, or one that
            does not depend on a group although a gradient is needed.
    """
    asked = Asked(first_order_needs() if needs is None else checked_needs(needs), generator)
    return measure_sources(model, batches, groups, {gradients: asked}, loss=loss)[gradients]


@dataclass(frozen=True)
class Asked:
    """What is asked of one source of gradients."""

    needs: frozenset[Need]
    generator: torch.Generator | None = None
    """As `measure_signals` takes it."""

    @property
    def wanted(self) -> frozenset[Need]:
        """The needs, and all that these need in turn."""
        return closure(self.needs)


def asked_with(needs: Mapping[Gradients, frozenset[Need]], seed: int) -> dict[Gradients, Asked]:
    """Needs of several sources, each with a generator of the same seed."""
    return {n: Asked(own, torch.Generator().manual_seed(seed)) for n, own in needs.items()}


ALONE: frozenset[Need] = frozenset({"second_order", "hessian", "flow"})
"""Needs for which a source has a pass of its own."""
ACTIVATIONS: frozenset[Need] = frozenset({"forward", "pairs"})
"""Passes that read no gradients of weights; nor do statistics."""


def measure_sources(
    model: nn.Module,
    batches: Batches,
    groups: Mapping[str, Group],
    asked: Mapping[Gradients, Asked],
    *,
    loss: Loss | None = None,
) -> dict[Gradients, dict[str, Signals]]:
    """`measure_signals` for several sources of gradients, in one forward pass where that can be.

    What calls of layers show is measured for all that ask, and every source has it.

    Args:
        model: The network; run in evaluation mode.
        batches: As in `measure_signals`.
        groups: Group name -> group.
        asked: Source -> what is asked of it.
        loss: Mean loss of a batch; cross-entropy by default.

    Returns:
        Source -> group -> signals.

    Raises:
        SelectorError: As `measure_signals`.
    """
    check_batches(batches)
    model = uncompiled(model)
    together = len({"backward" in one.wanted for one in asked.values()}) == 1
    if together and not any(ALONE & one.wanted for one in asked.values()):
        return _measured(model, batches, groups, asked, loss)
    apart = [_measured(model, batches, groups, {name: one}, loss) for name, one in asked.items()]
    return {name: signals for found in apart for name, signals in found.items()}


def _measured(
    model: nn.Module,
    batches: Batches,
    groups: Mapping[str, Group],
    asked: Mapping[Gradients, Asked],
    loss: Loss | None,
) -> dict[Gradients, dict[str, Signals]]:
    """The signals of sources that one forward pass serves."""
    objective, device = Objective(loss), device_of(model)
    seeds = {n: one.generator or torch.Generator().manual_seed(0) for n, one in asked.items()}
    producers = list(dict.fromkeys(layer for group in groups.values() for layer in group.producers))
    sources, statistics = list[SourceSums](), list[tuple[Statistic, ...]]()
    for name, one in asked.items():
        own = statistics_for(one.wanted)
        sums = {
            group: GroupSums.of(groups[group], device, own, "pairs" in one.wanted)
            for group in groups
        }
        source = gradient_source(name, objective, seeds[name].initial_seed())
        of_weights = bool((one.needs & PASSES.keys()) - ACTIVATIONS)
        sources.append(SourceSums(source, sums, of_weights))
        statistics.append(own)
    needs = frozenset[Need]().union(*(one.wanted for one in asked.values()))
    first = next(iter(seeds.values()))
    totals = DataPass(
        model,
        {layer: weight_of(model, layer) for layer in producers},
        bare_parameters(model, groups.values()),
        objective,
        sources,
        PassState(statistics, "backward" in needs, "second_order" in needs),
        signs=torch.Generator().manual_seed(first.initial_seed()),
    )
    trained = [*totals.weights.values(), *totals.passed]
    with measuring(model), evaluating(model), only_trained(model, trained):
        if "forward" in needs:
            totals.read(batches, groups)
        hessian = _hessian(totals, batches) if "hessian" in needs else {}
        flows: Mapping[str, Tensor] = {}
        if "flow" in needs:
            with without_checkpoints():
                probe = probe_inputs(model, batches, 1)
            flows = flow_gradients(model, probe, producers)
        signals: dict[Gradients, dict[str, Signals]] = {}
        for (name, one), summed in zip(asked.items(), sources, strict=True):
            found = ByLayer(totals, summed.gradients, hessian, flows)
            like = next(iter(signals.values()), {})
            signals[name] = {
                group: signals_of(
                    model, groups[group], sums, found, one.wanted, seeds[name], like.get(group)
                )
                for group, sums in summed.sums.items()
            }
        return signals


def _hessian(totals: DataPass, batches: Batches) -> dict[str, Tensor]:
    """Hessian times gradient of the mean loss, by producer."""
    (one,) = totals.sources
    direction = [gradient / totals.images for gradient in one.gradients.values()]
    weights = list(totals.weights.values())
    loss = one.source.again().value
    found = hessian_times(totals.model, batches, loss, weights, direction)
    return dict(zip(totals.weights, found, strict=True))
