"""From what a pass has summed up to the signals of a group."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selector.errors import SelectorError
from selector.network.groups import Group
from selector.network.layers import weight_of
from selector.statistics.accumulators import GroupSums, PointSums
from selector.statistics.channel_statistics import MeasuringPoint, PassSummary, Signals
from selector.statistics.gate_fisher import Pairs
from selector.statistics.passes import DataPass
from selector.statistics.statistic import Need
from selector.statistics.weights import (
    consumer_inputs,
    consumer_weights,
    normalisation_scale,
    producer_rows,
    weights_removed,
)


@dataclass(frozen=True)
class ByLayer:
    """What was found for the producers' weights, by layer."""

    totals: DataPass
    """Curvature is a sum over images."""
    gradients: Mapping[str, Tensor]
    """Of one source, summed over images."""
    hessian: Mapping[str, Tensor]
    flows: Mapping[str, Tensor]

    @property
    def images(self) -> int:
        """That were read; one where none were, so that it divides."""
        return max(1, self.totals.images)

    @property
    def summary(self) -> PassSummary | None:
        """What the pass itself showed; None where no images were read."""
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


def signals_of(
    model: nn.Module,
    group: Group,
    sums: GroupSums,
    found: ByLayer,
    wanted: frozenset[Need],
    generator: torch.Generator,
    like: Signals | None = None,
) -> Signals:
    """The signals of one group for one source of gradients.

    Args:
        model: The network.
        group: The group.
        sums: What the pass has summed up of it.
        found: The same of its producers' weights.
        wanted: What was measured.
        generator: Source of the `random` signal.
        like: Signals of the same group for another source, whose copies of weights are used.

    Raises:
        SelectorError: The loss does not depend on the group, although a gradient is needed.
    """
    if "backward" in wanted and "taylor" not in sums.consumers.moments:
        raise SelectorError(
            f"the loss does not depend on group {group.name!r}, so it has no gradient; "
            f"name it in ignore, ask for metrics that need no gradient, or use a loss that its "
            f"outputs reach"
        )
    consumers = _point(sums.consumers, found.summary)
    if like is None:
        rows = producer_rows(model, group, lambda layer: weight_of(model, layer).detach())
        weights = consumer_weights(model, group)
    else:
        rows, weights = like.rows, [consumer.weight for consumer in like.consumer_inputs]
    return Signals(
        rows=rows,
        row_gradients=found.rows(model, group, found.gradients, found.images),
        row_curvatures=found.rows(model, group, found.totals.state.curvature, found.images),
        hessian_gradients=found.rows(model, group, found.hessian),
        flows=found.rows(model, group, found.flows),
        normalisation_scale=normalisation_scale(model, group),
        consumer_inputs=tuple(consumer_inputs(group, weights, consumers)),
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
    return MeasuringPoint(sums.means(images), sums.positions / images, sums.statistics)
