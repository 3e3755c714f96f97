"""What a saliency metric may know of a group: plain values, on the CPU, made by one pass.

Measured where removal acts, at the consumers' inputs, each consumer for itself: a tensor that
several layers read (a residual stream) is counted once for each, with the gradient that flows back
through that layer alone, so that the sum of activation x gradient over consumers is the first-order
loss change of removing the channel. And, for those who ask, at the producers' outputs.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from selector.errors import SelectorError
from selector.statistics.filters import distances_of, filter_products
from selector.statistics.gate_fisher import Pairs
from selector.statistics.reductions import Moments, moments_of_rows
from selector.statistics.statistic import STATISTICS


@dataclass(frozen=True)
class PassSummary:
    """What the pass itself showed: the same for all its groups."""

    loss: float
    """Mean loss over the images, in nats for cross-entropy."""
    outputs: int
    """Size of the second dimension of the first output: the classes of a classifier."""
    images: int


@dataclass(frozen=True)
class MeasuringPoint:
    """One measuring point of a group: its quantities, reduced per image."""

    quantities: Mapping[str, Moments]
    """`value` a, `gradient` g, `taylor` a g, and in second order `gauss_newton` a^2 h / 2,
    `second_taylor` a^2 h / 2 - a g, `projected` a r; at producers also `effect`, w g summed over
    each filter. Gradients are those of one image's loss (nats per unit of activation)."""
    positions: float
    """Positions of one channel's maps in one image, summed over layers."""
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    """Means over images of what `STATISTICS` declares, by name."""

    def __getitem__(self, quantity: str) -> Moments:
        """Moments of a quantity.

        Raises:
            SelectorError: It was not measured in this pass.
        """
        if quantity not in self.quantities:
            raise SelectorError(
                f"these signals hold no {quantity!r} (measured: {', '.join(self.quantities)}); "
                "state what the metric needs where it is registered"
            )
        return self.quantities[quantity]


@dataclass(frozen=True)
class ConsumerInput:
    """One consumer's side of a group."""

    weight: Tensor
    """Its weights that read the group, shape (channels, inputs per channel, weights per input)."""
    statistics: Mapping[str, Tensor]
    """Means over images of statistics by input, each (channels, inputs per channel)."""
    products: Mapping[str, Tensor] = field(default_factory=dict)
    """Means over images of statistics by consumer, in the shapes that these give."""

    @property
    def mean_square(self) -> Tensor:
        """Mean over images of sum_x a^2 at these inputs, (channels, inputs per channel).

        Raises:
            SelectorError: It was not measured in this pass.
        """
        return _measured(self.statistics.get("squares"), "squares")


@dataclass(frozen=True)
class Signals:
    """Everything a saliency metric may know about a group; tensors on the CPU."""

    rows: Tensor
    """Producers' filters side by side, (channels, fan-in over all producers), as the network has
    them; `weight` is the same in float64."""
    row_gradients: Tensor | None
    row_curvatures: Tensor | None
    hessian_gradients: Tensor | None
    """Hessian of the mean loss times its gradient, like `weight`."""
    flows: Tensor | None
    """SynFlow: absolute weight x gradient of the flow of absolute weights, like `weight`."""
    normalisation_scale: Tensor | None
    """Sum of abs(gamma) over the BatchNorm layers between, shape (channels,); None without any."""
    consumer_inputs: tuple[ConsumerInput, ...]
    consumers: MeasuringPoint | None
    """At the consumers' inputs, where removal acts."""
    producers: MeasuringPoint | None
    """At the producers' outputs."""
    weights_removed: float
    """Weights that go with one channel, from all the layers of the group."""
    random: Tensor
    """Uniform numbers, shape (channels,), from the caller's generator."""
    run: PassSummary | None
    pairs: Mapping[str, Pairs] = field(default_factory=dict)
    """Mode of removal -> what every two channels do together; empty unless asked for."""
    memo: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)
    """What was computed from these signals, so that it is computed once: scores by metric, since
    ensembles ask for those of others, and what consumers make of their inputs."""

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.rows)

    @property
    def weight(self) -> Tensor:
        """Producers' filters side by side, (channels, fan-in over all producers), float64."""
        return self.rows.double()

    @property
    def weight_gradient(self) -> Tensor:
        """Gradient of the mean loss over all images with respect to `weight`; same shape."""
        return _measured(self.row_gradients, "gradient of the weights")

    @property
    def weight_curvature(self) -> Tensor:
        """Diagonal of the Gauss-Newton matrix of the mean loss, like `weight`."""
        return _measured(self.row_curvatures, "curvature of the weights")

    @property
    def at_consumers(self) -> MeasuringPoint:
        """The measuring point where removal acts."""
        return _measured_point(self.consumers)

    @property
    def at_producers(self) -> MeasuringPoint:
        """The measuring point at the producers' outputs."""
        return _measured_point(self.producers)

    @property
    def activation(self) -> Moments:
        """Of the activations at the consumers' inputs."""
        return self.at_consumers["value"]

    @property
    def gradient(self) -> Moments:
        """Of the gradients at the consumers' inputs, in nats per unit of activation."""
        return self.at_consumers["gradient"]

    @property
    def taylor(self) -> Moments:
        """Of activation x gradient, in nats: the first-order effect of a gate on the channel."""
        return self.at_consumers["taylor"]

    @property
    def positive_share(self) -> Tensor:
        """Share of positions whose activation is above zero, shape (channels,), 0 to 1."""
        return self.statistic("positive") / self.at_consumers.positions

    def statistic(self, name: str) -> Tensor:
        """Mean over images of a statistic of `STATISTICS`.

        Raises:
            SelectorError: It was not measured in this pass.
        """
        point = self.at_consumers
        known = STATISTICS.get(name)
        if known is not None and known.where == "producers" and known.of != "batch":
            point = self.at_producers
        return _measured(point.statistics.get(name), name)

    @cached_property
    def filter_products(self) -> Tensor:
        """Scalar product of every two filters, shape (channels, channels), float64."""
        return filter_products(self.rows)

    @cached_property
    def filter_distances(self) -> Tensor:
        """Euclidean distance of every two filters, shape (channels, channels), float64."""
        return distances_of(self.filter_products)

    @cached_property
    def weight_moments(self) -> Mapping[str, Moments]:
        """Moments of a filter's weights under every pointwise function that was measured."""
        found = {"value": moments_of_rows(self.rows)}
        if self.row_gradients is not None:
            weight = self.weight
            gradient = self.weight_gradient
            found["gradient"] = moments_of_rows(gradient)
            taylor = weight * gradient
            found["taylor"] = moments_of_rows(taylor)
            if self.row_curvatures is not None:
                second = weight.square() * self.weight_curvature / 2
                found["gauss_newton"] = moments_of_rows(second)
                found["second_taylor"] = moments_of_rows(second - taylor)
        return found


def _measured(values: Tensor | None, what: str) -> Tensor:
    if values is None:
        raise SelectorError(
            f"these signals hold no {what}; state what the metric needs where it is registered"
        )
    return values.double()


def _measured_point(point: MeasuringPoint | None) -> MeasuringPoint:
    if point is None:
        raise SelectorError(
            "these signals hold weights only; state what the metric needs where it is registered"
        )
    return point
