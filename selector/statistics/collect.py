"""One forward and backward pass over the data -> the signals of every group, in bounded memory.

Batch by batch: nothing is kept of a batch but sums. Hooks, gradients and flags are gone afterwards.
What is dear (second order, whole maps, flows) is measured only when a metric's needs name it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from selector.data.batches import Batches, check_batches
from selector.data.forward import device_of, evaluating, probe_inputs
from selector.data.loss import Loss, Objective
from selector.errors import SelectorError
from selector.network.groups import Group
from selector.network.layers import weight_of
from selector.statistics.accumulators import PointSums, Sums
from selector.statistics.channel_statistics import Point, Run, Signals
from selector.statistics.curvature import flow_gradients, hessian_times
from selector.statistics.gate_fisher import Pairs, pairs_of
from selector.statistics.hooks import Pass
from selector.statistics.passes import DataPass, only_trained
from selector.statistics.weights import (
    consumer_inputs,
    normalisation_scale,
    producer_rows,
    weights_removed,
)

Need = Literal[
    "weights",
    "normalisation",
    "forward",
    "backward",
    "pairs",
    "second_order",
    "hessian",
    "flow",
    "maps",
]
"""What a metric needs: weights alone; a BatchNorm between; a forward pass; a backward pass too;
products of every two channels' effects on top of it; a second backward pass of projected outputs; a
second pass over the data for Hessian x gradient; a pass of absolute weights on all-ones input;
whole feature maps."""

FIRST_ORDER: frozenset[Need] = frozenset({"weights", "normalisation", "forward", "backward"})
"""Needs that one plain forward and backward pass meets."""

FORWARD: frozenset[Need] = frozenset({"forward"})

PAIRS: frozenset[Need] = frozenset({"forward", "pairs"})
"""What decisions need beside the metrics: how sets of channels act together."""

_BACKWARD: frozenset[Need] = frozenset({"backward", "pairs", "second_order", "hessian"})
_FORWARD: frozenset[Need] = _BACKWARD | {"forward", "maps"}


def measure_signals(
    model: nn.Module,
    batches: Batches,
    groups: Mapping[str, Group],
    *,
    needs: Iterable[Need] = FIRST_ORDER,
    loss: Loss | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Signals]:
    """Collect the signals of all groups in one pass; the model is left exactly as found.

    Args:
        model: The network; run in evaluation mode.
        batches: Re-iterable of (inputs, targets). Splitting the same images into other batches
            changes nothing but rounding.
        groups: Group name -> group.
        needs: What the metrics need; all that is first-order by default.
        loss: Mean loss of a batch; cross-entropy by default.
        generator: Source of the `random` signal and, by its seed, of the signs that the curvature
            is estimated with; seeded with 0 by default.

    Raises:
        SelectorError: Unusable batches, a loss that is not finite, or one that does not depend on
            a group although a gradient is needed.
    """
    check_batches(batches)
    wanted = frozenset(needs)
    generator = generator or torch.Generator().manual_seed(0)
    device = device_of(model)
    pairs = "pairs" in wanted
    sums = {name: Sums.of(group, device, pairs) for name, group in groups.items()}
    producers = list(dict.fromkeys(layer for group in groups.values() for layer in group.producers))
    weights = {layer: weight_of(model, layer) for layer in producers}
    objective = Objective(loss)
    totals = DataPass(
        model,
        weights,
        objective,
        sums,
        Pass(second_order="second_order" in wanted, maps="maps" in wanted),
        backward=bool(wanted & _BACKWARD),
        signs=torch.Generator().manual_seed(generator.initial_seed()),
    )
    hessian: dict[str, Tensor] = {}
    flows: dict[str, Tensor] = {}
    with evaluating(model), only_trained(model, weights.values()):
        if wanted & _FORWARD:
            totals.read(batches, groups)
        if "hessian" in wanted:
            direction = [totals.gradients[layer] / totals.images for layer in producers]
            with torch.enable_grad():
                found = hessian_times(model, batches, objective, list(weights.values()), direction)
            hessian = dict(zip(producers, found, strict=True))
        if "flow" in wanted:
            flows = flow_gradients(model, probe_inputs(model, batches, 1), producers)
    run = Run(totals.loss / totals.images, totals.outputs, totals.images) if totals.images else None
    rows = _ByLayer(totals.gradients, totals.hooks.curvature, hessian, flows, max(1, totals.images))
    return {
        name: _signals(model, group, sums[name], rows, run, wanted, generator)
        for name, group in groups.items()
    }


@dataclass(frozen=True)
class _ByLayer:
    """What was found for the producers' weights, by layer; sums over images where there are any."""

    gradients: Mapping[str, Tensor]
    curvature: Mapping[str, Tensor]
    hessian: Mapping[str, Tensor]
    flows: Mapping[str, Tensor]
    images: int

    def rows(
        self, model: nn.Module, group: Group, values: Mapping[str, Tensor], images: int = 1
    ) -> Tensor | None:
        """As the rows of a group, or None where it was not asked for."""
        if not all(layer in values for layer in group.producers):
            return None
        return producer_rows(model, group, values.__getitem__) / images


def _signals(
    model: nn.Module,
    group: Group,
    sums: Sums,
    found: _ByLayer,
    run: Run | None,
    wanted: frozenset[Need],
    generator: torch.Generator,
) -> Signals:
    if wanted & _BACKWARD and "taylor" not in sums.consumers.moments:
        raise SelectorError(
            f"the loss does not depend on group {group.name!r}, so it has no gradient; "
            f"name it in ignore, ask for metrics that need no gradient, or use a loss that its "
            f"outputs reach"
        )
    consumers = _point(sums.consumers, run)
    return Signals(
        rows=producer_rows(model, group, lambda layer: weight_of(model, layer).detach()),
        row_gradients=found.rows(model, group, found.gradients, found.images),
        row_curvatures=found.rows(model, group, found.curvature, found.images),
        hessian_gradients=found.rows(model, group, found.hessian),
        flows=found.rows(model, group, found.flows),
        normalisation_scale=normalisation_scale(model, group),
        consumer_inputs=tuple(consumer_inputs(model, group, consumers)),
        consumers=consumers,
        producers=_point(sums.producers, run),
        weights_removed=weights_removed(model, group),
        random=torch.rand(group.channels, generator=generator, dtype=torch.float64),
        run=run,
        pairs=_pairs(sums.consumers, consumers, run),
    )


def _pairs(sums: PointSums, point: Point | None, run: Run | None) -> Mapping[str, Pairs]:
    products = sums.special.get("pairs")
    if products is None or point is None or run is None:
        return {}
    return pairs_of(
        (products / run.images).cpu(),
        point["taylor"].sum,
        point["gradient"].sum,
        point["value"].sum / point.positions,
    )


def _point(sums: PointSums, run: Run | None) -> Point | None:
    if run is None:
        return None
    special = {
        name: (values / run.images).cpu()
        for name, values in sums.special.items()
        if values.ndim == 1
    }
    return Point(sums.means(run.images), sums.positions / run.images, special)
