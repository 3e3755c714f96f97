"""Hooks that sum up, batch by batch, what flows through the measuring points of every group.

Two points: the consumers' inputs, where removal acts, and the producers' outputs. At a consumer's
input the layer gets a view of its own, so that the gradient is the flow through that layer alone.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from selector.groups import CONVOLUTION, Group, Slice
from selector.moments import positive_count, precise, sums_over_positions
from selector.sums import PointSums, Sums

Stage = Literal["loss", "curvature"]


@dataclass
class Pass:
    """What the hooks must know of the pass and of the batch at hand."""

    second_order: bool = False
    """Whether a second backward pass, of projected outputs, follows each first one."""
    maps: bool = False
    """Whether whole maps are looked at (ranks, independence)."""
    stage: Stage = "loss"
    copied: set[str] = field(default_factory=set)
    """Tensors that the network overwrites in place before their gradient comes: copied first."""
    overwritten: set[str] = field(default_factory=set)
    """Such tensors found in this batch, whose sums are void: the batch must be read again."""
    curvature: dict[str, Tensor] = field(default_factory=dict)
    """Producer -> squared gradients of projected outputs, summed over images, like its weight."""
    held: "list[_Held]" = field(default_factory=list)
    """What is kept for gradients that are still to come."""

    def finish_batch(self) -> None:
        """Let go of the batch, whether or not every gradient came: hooks are cycles otherwise."""
        for held in self.held:
            held.release()
        self.held.clear()


@dataclass(frozen=True)
class _Tap:
    """One group's share of one layer's inputs or outputs."""

    sums: PointSums
    index: Tensor
    channels: Tensor
    one_for_one: bool
    """Whether the layer's positions are the group's channels, in the same order."""

    @classmethod
    def of(cls, part: Slice, sums: PointSums, width: int) -> "_Tap":
        same = part.indices == part.channels == tuple(range(sums.channels))
        index = torch.tensor(part.indices, device=sums.device)
        channels = torch.tensor(part.channels, device=sums.device)
        return cls(sums, index, channels, same and width == sums.channels)

    def per_channel(self, values: Tensor) -> Tensor:
        """Sum values (..., width of the layer) into (..., channels of the group)."""
        if self.one_for_one:
            return values
        out = torch.zeros(
            *values.shape[:-1], self.sums.channels, dtype=torch.float64, device=values.device
        )
        return out.index_add_(-1, self.channels, values.index_select(-1, self.index))

    def planes(self, maps: Tensor) -> Tensor:
        """Whole maps (images, width, rows, columns) -> (images, channels, rows, columns).

        Several maps of one channel are laid one below the other.
        """
        order = torch.argsort(self.channels, stable=True)
        chosen = maps.index_select(1, self.index[order])
        return chosen.reshape(len(maps), self.sums.channels, -1, maps.shape[-1])


@contextmanager
def tapped(
    model: nn.Module, groups: Mapping[str, Group], sums: Mapping[str, Sums], pass_: Pass
) -> Iterator[None]:
    """Context in which consumers report their inputs, producers their outputs, and gradients."""
    inputs: dict[str, list[_Tap]] = {}
    outputs: dict[str, list[_Tap]] = {}
    for name, group in groups.items():
        for part in group.slices:
            layer = model.get_submodule(part.layer)
            if part.side == "in":
                tap = _Tap.of(part, sums[name].consumers, _width(layer, "in"))
                inputs.setdefault(part.layer, []).append(tap)
            elif part.side == "out":
                tap = _Tap.of(part, sums[name].producers, _width(layer, "out"))
                outputs.setdefault(part.layer, []).append(tap)
    handles = []
    try:
        for layer_name, taps in inputs.items():
            hook = _watch_inputs(layer_name, taps, pass_)
            handles.append(model.get_submodule(layer_name).register_forward_pre_hook(hook))
        for layer_name, taps in outputs.items():
            watch = _watch_outputs(layer_name, taps, pass_)
            handles.append(model.get_submodule(layer_name).register_forward_hook(watch))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _width(layer: nn.Module, side: Literal["in", "out"]) -> int:
    kind = "channels" if isinstance(layer, CONVOLUTION) else "features"
    return int(getattr(layer, f"{side}_{kind}"))


Inputs = tuple[Tensor, ...]


@dataclass
class _Held:
    """What one call of a layer leaves for its gradient; freed as soon as that has come."""

    name: str
    layer: nn.Module
    tensor: Tensor | None
    """The tensor in the network, to see whether it was overwritten; it holds us, too."""
    maps: Tensor
    """Its values, shape (images, width, positions)."""
    version: int
    inputs: Tensor | None = None
    """What a producer was called with; for curvatures of weights only."""
    slopes: Tensor | None = None
    """Gradients of the images' losses, kept for the second backward pass only."""

    def changed(self) -> bool:
        """Whether the network has written over the tensor since."""
        return self.tensor is not None and self.tensor._version != self.version

    def release(self) -> None:
        """Let go of every tensor, and so of the cycle with the hook."""
        self.tensor = self.inputs = self.slopes = None
        self.maps = self.maps[:0].clone()


def _watch_inputs(
    layer: str, taps: list[_Tap], pass_: Pass
) -> Callable[[nn.Module, Inputs], Inputs]:
    def pre_hook(module: nn.Module, args: Inputs) -> Inputs:
        # A view of its own for this consumer: its gradient is the flow through this layer alone.
        inputs = args[0].view_as(args[0])
        held = _hold(f"inputs of {layer}", module, inputs, pass_)
        totals = _add_values(taps, held)
        positive, squares = positive_count(held.maps), totals[2].sum(0)
        for tap in taps:
            tap.sums.add_special("positive", tap.per_channel(positive))
            tap.sums.add_special(f"squares of {layer}", squares.index_select(0, tap.index))
            if pass_.maps:
                tap.sums.pending_maps.append(tap.planes(_planes(module, held.maps, inputs)))
        if inputs.requires_grad:
            _follow_gradient(held, taps, pass_)
        return (inputs, *args[1:])

    return pre_hook


def _watch_outputs(
    layer: str, taps: list[_Tap], pass_: Pass
) -> Callable[[nn.Module, Inputs, Tensor], None]:
    def hook(module: nn.Module, args: Inputs, output: Tensor) -> None:
        held = _hold(f"outputs of {layer}", module, output, pass_)
        _add_values(taps, held)
        if output.requires_grad:
            if pass_.second_order:
                held.inputs = args[0].detach()
            _follow_gradient(held, taps, pass_, layer)

    return hook


def _hold(name: str, layer: nn.Module, tensor: Tensor, pass_: Pass) -> _Held:
    values = tensor.detach()
    maps = _maps(layer, values.clone() if name in pass_.copied else values)
    return _Held(name, layer, tensor, maps, tensor._version)


def _add_values(taps: list[_Tap], held: _Held) -> Tensor:
    totals = sums_over_positions(held.maps)
    for tap in taps:
        tap.sums.add("value", tap.per_channel(totals))
        # Every channel has equally many inputs of a layer, so an average counts its positions.
        per_image = held.maps.shape[2] * len(tap.index) / tap.sums.channels
        tap.sums.pending_positions += per_image * held.maps.shape[0]
    return totals


def _follow_gradient(
    held: _Held, taps: list[_Tap], pass_: Pass, producer: str | None = None
) -> None:
    tensor = held.tensor
    assert tensor is not None
    pass_.held.append(held)

    def on_gradient(gradient: Tensor) -> None:
        if held.changed() and held.name not in pass_.copied:
            pass_.overwritten.add(held.name)
            return
        slopes = _maps(held.layer, gradient)
        if pass_.stage == "loss":
            _add_gradient(held, slopes, taps, pass_, producer)
        else:
            _add_curvature(held, slopes, taps)
            if producer is not None:
                _add_weight_curvature(producer, held, gradient, pass_)
            held.release()

    tensor.register_hook(on_gradient)  # type: ignore[no-untyped-call]


def _add_gradient(
    held: _Held, slopes: Tensor, taps: list[_Tap], pass_: Pass, producer: str | None
) -> None:
    gradient = sums_over_positions(slopes)
    taylor = sums_over_positions(held.maps, slopes)
    quantities = {"gradient": gradient, "taylor": taylor}
    if producer is not None:
        bias = held.layer.bias
        own = taylor[0]
        if isinstance(bias, Tensor):
            own = own - gradient[0] * bias.detach().double()
        quantities["effect"] = torch.stack([own, own.abs(), own.square()])
    for tap in taps:
        for name, values in quantities.items():
            tap.sums.add(name, tap.per_channel(values))
    if pass_.second_order:
        held.slopes = slopes
    else:
        held.release()


def _add_curvature(held: _Held, projected: Tensor, taps: list[_Tap]) -> None:
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


def _add_weight_curvature(producer: str, held: _Held, projected: Tensor, pass_: Pass) -> None:
    """Squared gradients of a layer's weights, image by image: the layer is run again for each."""
    assert held.inputs is not None
    weight = cast(nn.Parameter, held.layer.weight)
    total = pass_.curvature.setdefault(producer, torch.zeros_like(weight, dtype=torch.float64))
    with torch.enable_grad():
        for image in range(len(projected)):
            rows = slice(image, image + 1)
            # .forward: the hooks of the layer are not to see this call.
            output = held.layer.forward(held.inputs[rows])
            (gradient,) = torch.autograd.grad(output, weight, projected[rows])
            total += gradient.double().square()


def _maps(layer: nn.Module, values: Tensor) -> Tensor:
    """A layer's inputs or outputs as (images, width, positions)."""
    if isinstance(layer, CONVOLUTION):
        return values.flatten(2)
    return values.reshape(values.shape[0], -1, values.shape[-1]).transpose(1, 2)


def _planes(layer: nn.Module, maps: Tensor, inputs: Tensor) -> Tensor:
    """Maps with their rows and columns; a linear layer's inputs have one row."""
    rows = inputs.shape[2] if isinstance(layer, CONVOLUTION) and inputs.ndim > 3 else 1
    return maps.reshape(*maps.shape[:2], rows, -1)
