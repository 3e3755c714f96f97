"""What one call of a layer adds to the groups that pass through it, and its gradient later."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from selector.errors import SelectorError
from selector.network.groups import Slice
from selector.network.layers import CONVOLUTION
from selector.statistics.accumulators import PointSums
from selector.statistics.reductions import precise, sums_over_positions
from selector.statistics.statistic import LayerCall, Statistic


@dataclass(frozen=True)
class Tap:
    """One group's share of one layer's inputs or outputs."""

    sums: PointSums
    index: Tensor
    channels: Tensor
    one_for_one: bool
    """Whether the layer's positions are the group's channels, in the same order."""

    @classmethod
    def of(cls, part: Slice, sums: PointSums, width: int) -> "Tap":
        """The share that a slice describes, of a layer so wide."""
        same = part.indices == part.channels == tuple(range(sums.channels))
        index = torch.tensor(part.indices, device=sums.device)
        channels = torch.tensor(part.channels, device=sums.device)
        return cls(sums, index, channels, same and width == sums.channels)

    @cached_property
    def by_channel(self) -> Tensor:
        """`index`, the positions of one channel next to each other."""
        return self.index[torch.argsort(self.channels, stable=True)]

    def per_channel(self, values: Tensor) -> Tensor:
        """Sum values (..., width of the layer) into (..., channels of the group)."""
        if self.one_for_one:
            return values
        out = torch.zeros(
            *values.shape[:-1], self.sums.channels, dtype=torch.float64, device=values.device
        )
        return out.index_add_(-1, self.channels, values.index_select(-1, self.index))

    def restricted(self, call: LayerCall) -> LayerCall:
        """What a call shows of the group alone, the inputs of one channel next to each other."""
        if self.one_for_one:
            return replace(call, channels=self.sums.channels)
        return replace(
            call,
            values=call.values.index_select(1, self.by_channel),
            sums=call.sums.index_select(2, self.by_channel),
            gradient=None
            if call.gradient is None
            else call.gradient.index_select(1, self.by_channel),
            channels=self.sums.channels,
        )

    def planes(self, maps: Tensor) -> Tensor:
        """Whole maps (images, width, rows, columns) -> (images, channels, rows, columns).

        Several maps of one channel are laid one below the other.
        """
        chosen = maps.index_select(1, self.by_channel)
        return chosen.reshape(len(maps), self.sums.channels, -1, maps.shape[-1])


@dataclass
class Held:
    """What one call of a layer leaves for its gradient; freed as soon as that has come."""

    name: str
    layer: nn.Module
    tensor: Tensor | None
    """The tensor in the network, to see whether it was overwritten; it holds us, too."""
    maps: Tensor
    """Its values, shape (images, width, positions)."""
    version: int
    sums: Tensor | None = None
    """`maps` summed over positions, (3, images, width), where a statistic asks for gradients."""
    inputs: Tensor | None = None
    """What a producer was called with; for curvatures of weights only."""
    slopes: Tensor | None = None
    """Gradients of the images' losses, kept for the second backward pass only."""
    again: bool = False
    """Whether the call was made in a backward pass, and so brings the gradient of that alone."""
    answered: bool = False
    """Whether its gradient has come."""

    def totals(self) -> Tensor:
        """`maps` summed over positions, (3, images, width)."""
        return sums_over_positions(self.maps) if self.sums is None else self.sums

    def changed(self) -> bool:
        """Whether the network has written over the tensor since."""
        return self.tensor is not None and self.tensor._version != self.version

    def release(self) -> None:
        """Let go of every tensor, and so of the cycle with the hook."""
        self.tensor = self.sums = self.inputs = self.slopes = None
        self.maps = self.maps[:0].clone()


def add_values(taps: list[Tap], held: Held) -> Tensor:
    """Add the sums of the activations; returned by input, (3, images, width)."""
    totals = sums_over_positions(held.maps)
    for tap in taps:
        tap.sums.add("value", tap.per_channel(totals))
        # Every channel has equally many inputs of a layer, so an average counts its positions.
        per_image = held.maps.shape[2] * len(tap.index) / tap.sums.channels
        tap.sums.pending_positions += per_image * held.maps.shape[0]
    return totals


def add_statistic(statistic: Statistic, call: LayerCall, taps: list[Tap], layer: str) -> None:
    """Add what a statistic of calls sees in a call.

    Raises:
        SelectorError: The statistic gives something other than one number for each input.
    """
    call = call.sampled if statistic.sampled else call
    if statistic.by_consumer:
        for tap in taps:
            part = tap.restricted(call)
            own = _tensor(statistic.compute(part), statistic, layer)
            tap.sums.add_statistic(f"{statistic.name} of {layer}", own)
        return
    found: object = statistic.compute(call)
    width = call.values.shape[1]
    if not isinstance(found, Tensor) or found.shape != (width,):
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise SelectorError(
            f"statistic {statistic.name!r} gives {given} at layer {layer!r}, not one number for "
            f"each of its {width} channels"
        )
    values = found.detach().double()
    for tap in taps:
        if statistic.by_input:
            own = values.index_select(0, tap.index)
            tap.sums.add_statistic(f"{statistic.name} of {layer}", own)
        else:
            tap.sums.add_statistic(statistic.name, tap.per_channel(values))


def _tensor(found: object, statistic: Statistic, layer: str) -> Tensor:
    if not isinstance(found, Tensor):
        raise SelectorError(
            f"statistic {statistic.name!r} gives a {type(found).__name__} at layer {layer!r}, not "
            "a tensor"
        )
    return found.detach().double()


def add_gradient(held: Held, slopes: Tensor, taps: list[Tap], producer: bool) -> None:
    """Add gradient and Taylor; at a producer also what its filters' weights do together."""
    gradient = sums_over_positions(slopes)
    taylor = sums_over_positions(held.maps, slopes)
    quantities = {"gradient": gradient, "taylor": taylor}
    if producer:
        bias = held.layer.bias
        own = taylor[0]
        if isinstance(bias, Tensor):
            own = own - gradient[0] * bias.detach().double()
        quantities["effect"] = torch.stack([own, own.abs(), own.square()])
    for tap in taps:
        for name, values in quantities.items():
            tap.sums.add(name, tap.per_channel(values))


def add_curvature(held: Held, projected: Tensor, taps: list[Tap]) -> None:
    """From a gradient r of the projected outputs, whose mean square is the curvature h = r^2."""
    assert held.slopes is not None
    values, projected = precise(held.maps), precise(projected)
    products = values * projected
    second = products.square() / 2
    quantities = {
        "projected": sums_over_positions(products),
        "gauss_newton": sums_over_positions(second),
        "second_taylor": sums_over_positions(second - values * precise(held.slopes)),
    }
    for tap in taps:
        for name, values in quantities.items():
            tap.sums.add(name, tap.per_channel(values))


def weight_curvature(held: Held, projected: Tensor) -> Tensor:
    """Squared gradients of a layer's weights, summed over images: the layer is run for each."""
    assert held.inputs is not None
    weight = cast(nn.Parameter, held.layer.weight)
    total = torch.zeros_like(weight, dtype=torch.float64)
    parts = max(1, len(projected) // max(1, len(held.maps)))
    with torch.enable_grad():
        for start in range(0, len(projected), parts):
            rows = slice(start, start + parts)
            # .forward: the hooks of the layer must not see this call.
            output = held.layer.forward(held.inputs[rows])
            (gradient,) = torch.autograd.grad(output, weight, projected[rows])
            total += gradient.double().square()
    return total


def maps_of(layer: nn.Module, values: Tensor, images: int = 0) -> Tensor:
    """A layer's inputs or outputs as (images, width, positions).

    Args:
        layer: Any layer.
        values: What it reads or gives. Windows and patches of an image may lie next to each other
            where images do: they are positions.
        images: Of the batch, where that is known.
    """
    first = values.shape[0]
    parts = first // images if images and first > images and first % images == 0 else 1
    if isinstance(layer, CONVOLUTION):
        maps = values.flatten(2)
        if parts > 1:
            maps = maps.unflatten(0, (images, parts)).transpose(1, 2).flatten(2)  # type: ignore[no-untyped-call]
        return maps
    return values.reshape(first // parts, -1, values.shape[-1]).transpose(1, 2)


def planes_of(layer: nn.Module, maps: Tensor, inputs: Tensor) -> Tensor:
    """Maps with their rows and columns; a linear layer's inputs have one row."""
    rows = inputs.shape[2] if isinstance(layer, CONVOLUTION) and inputs.ndim > 3 else 1
    return maps.reshape(*maps.shape[:2], rows, -1)
