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
from selector.errors import SelectorError
from selector.network.copying import uncompiled
from selector.network.groups import Group
from selector.network.hooks import without_checkpoints
from selector.network.layers import weight_of
from selector.statistics import built_in as built_in
from selector.statistics.accumulators import GroupSums, PointSums
from selector.statistics.channel_statistics import MeasuringPoint, PassSummary, Signals
from selector.statistics.curvature import flow_gradients, hessian_times
from selector.statistics.gate_fisher import Pairs
from selector.statistics.gradient_source import Gradients, gradient_source
from selector.statistics.hooks import PassState
from selector.statistics.passes import DataPass, measuring, only_trained
from selector.statistics.statistic import (
    Need,
    checked_needs,
    closure,
    first_order_needs,
    statistics_for,
)
from selector.statistics.weights import (
    bare_parameters,
    consumer_inputs,
    normalisation_scale,
    producer_rows,
    weights_removed,
)


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
    check_batches(batches)
    model = uncompiled(model)
    wanted = closure(first_order_needs() if needs is None else checked_needs(needs))
    generator = generator or torch.Generator().manual_seed(0)
    statistics, objective = statistics_for(wanted), Objective(loss)
    sums = {
        name: GroupSums.of(group, device_of(model), statistics, "pairs" in wanted)
        for name, group in groups.items()
    }
    producers = list(dict.fromkeys(layer for group in groups.values() for layer in group.producers))
    totals = DataPass(
        model,
        {layer: weight_of(model, layer) for layer in producers},
        bare_parameters(model, groups.values()),
        objective,
        gradient_source(gradients, objective, generator.initial_seed()),
        sums,
        PassState(statistics, "backward" in wanted, "second_order" in wanted),
        signs=torch.Generator().manual_seed(generator.initial_seed()),
    )
    trained = [*totals.weights.values(), *totals.passed]
    with measuring(model), evaluating(model), only_trained(model, trained):
        if "forward" in wanted:
            totals.read(batches, groups)
        hessian = _hessian(totals, batches) if "hessian" in wanted else {}
        flows: Mapping[str, Tensor] = {}
        if "flow" in wanted:
            with without_checkpoints():
                probe = probe_inputs(model, batches, 1)
            flows = flow_gradients(model, probe, producers)
        found = _ByLayer(totals, hessian, flows)
        return {
            name: _signals(model, group, sums[name], found, wanted, generator)
            for name, group in groups.items()
        }


def _hessian(totals: DataPass, batches: Batches) -> dict[str, Tensor]:
    """Hessian times gradient of the mean loss, by producer."""
    direction = [gradient / totals.images for gradient in totals.gradients.values()]
    weights = list(totals.weights.values())
    loss = totals.source.again().value
    found = hessian_times(totals.model, batches, loss, weights, direction)
    return dict(zip(totals.weights, found, strict=True))


@dataclass(frozen=True)
class _ByLayer:
    """What was found for the producers' weights, by layer."""

    totals: DataPass
    """Gradients and curvature are sums over images."""
    hessian: Mapping[str, Tensor]
    flows: Mapping[str, Tensor]

    @property
    def images(self) -> int:
        return max(1, self.totals.images)

    @property
    def summary(self) -> PassSummary | None:
        found = self.totals
        if not found.images:
            return None
        return PassSummary(found.loss / found.images, found.outputs, found.images)

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
    sums: GroupSums,
    found: _ByLayer,
    wanted: frozenset[Need],
    generator: torch.Generator,
) -> Signals:
    if "backward" in wanted and "taylor" not in sums.consumers.moments:
        raise SelectorError(
            f"the loss does not depend on group {group.name!r}, so it has no gradient; "
            f"name it in ignore, ask for metrics that need no gradient, or use a loss that its "
            f"outputs reach"
        )
    consumers = _point(sums.consumers, found.summary)
    return Signals(
        rows=producer_rows(model, group, lambda layer: weight_of(model, layer).detach()),
        row_gradients=found.rows(model, group, found.totals.gradients, found.images),
        row_curvatures=found.rows(model, group, found.totals.state.curvature, found.images),
        hessian_gradients=found.rows(model, group, found.hessian),
        flows=found.rows(model, group, found.flows),
        normalisation_scale=normalisation_scale(model, group),
        consumer_inputs=tuple(consumer_inputs(model, group, consumers)),
        consumers=consumers,
        producers=_point(sums.producers, found.summary),
        weights_removed=weights_removed(model, group),
        random=torch.rand(group.channels, generator=generator, dtype=torch.float64),
        run=found.summary,
        pairs=_pairs(sums, consumers, found.images),
    )


def _pairs(sums: GroupSums, point: MeasuringPoint | None, images: int) -> Mapping[str, Pairs]:
    if sums.pairs is None or point is None:
        return {}
    return sums.pairs.means(
        images,
        point["taylor"].sum,
        point["gradient"].sum,
        point["value"].sum / point.positions,
    )


def _point(sums: PointSums, summary: PassSummary | None) -> MeasuringPoint | None:
    if summary is None:
        return None
    images = summary.images
    statistics = {name: (values / images).cpu() for name, values in sums.statistics.items()}
    return MeasuringPoint(sums.means(images), sums.positions / images, statistics)
