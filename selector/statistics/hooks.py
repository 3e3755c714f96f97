"""Hooks that sum up, batch by batch, what flows through the measuring points of every group.

Two points: the consumers' inputs, where removal acts, and the producers' outputs. At a consumer's
input the layer gets a view of its own, so that the gradient is the flow through that layer alone.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from selector.network.groups import Group
from selector.network.layers import layer_width
from selector.statistics.accumulators import Sums
from selector.statistics.reductions import positive_count
from selector.statistics.taps import (
    Held,
    Tap,
    add_curvature,
    add_gradient,
    add_values,
    maps_of,
    planes_of,
    weight_curvature,
)

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
    held: "list[Held]" = field(default_factory=list)
    """What is kept for gradients that are still to come."""

    def finish_batch(self) -> None:
        """Let go of the batch, whether or not every gradient came: hooks are cycles otherwise."""
        for held in self.held:
            held.release()
        self.held.clear()


@contextmanager
def tapped(
    model: nn.Module, groups: Mapping[str, Group], sums: Mapping[str, Sums], pass_: Pass
) -> Iterator[None]:
    """Context in which consumers report their inputs, producers their outputs, and gradients."""
    inputs: dict[str, list[Tap]] = {}
    outputs: dict[str, list[Tap]] = {}
    for name, group in groups.items():
        for part in group.running:
            layer = model.get_submodule(part.layer)
            if part.side == "in":
                tap = Tap.of(part, sums[name].consumers, layer_width(layer, "in"))
                inputs.setdefault(part.layer, []).append(tap)
            elif part.side == "out":
                tap = Tap.of(part, sums[name].producers, layer_width(layer, "out"))
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


Inputs = tuple[Tensor, ...]


def _watch_inputs(
    layer: str, taps: list[Tap], pass_: Pass
) -> Callable[[nn.Module, Inputs], Inputs]:
    def pre_hook(module: nn.Module, args: Inputs) -> Inputs:
        # A view of its own for this consumer: its gradient is the flow through this layer alone.
        inputs = args[0].view_as(args[0])
        held = _hold(f"inputs of {layer}", module, inputs, pass_)
        totals = add_values(taps, held)
        positive, squares = positive_count(held.maps), totals[2].sum(0)
        for tap in taps:
            tap.sums.add_special("positive", tap.per_channel(positive))
            tap.sums.add_special(f"squares of {layer}", squares.index_select(0, tap.index))
            if pass_.maps:
                tap.sums.pending_maps.append(tap.planes(planes_of(module, held.maps, inputs)))
        if inputs.requires_grad:
            _follow_gradient(held, taps, pass_)
        return (inputs, *args[1:])

    return pre_hook


def _watch_outputs(
    layer: str, taps: list[Tap], pass_: Pass
) -> Callable[[nn.Module, Inputs, Tensor], None]:
    def hook(module: nn.Module, args: Inputs, output: Tensor) -> None:
        held = _hold(f"outputs of {layer}", module, output, pass_)
        add_values(taps, held)
        if output.requires_grad:
            if pass_.second_order:
                held.inputs = args[0].detach()
            _follow_gradient(held, taps, pass_, layer)

    return hook


def _hold(name: str, layer: nn.Module, tensor: Tensor, pass_: Pass) -> Held:
    values = tensor.detach()
    maps = maps_of(layer, values.clone() if name in pass_.copied else values)
    return Held(name, layer, tensor, maps, tensor._version)


def _follow_gradient(held: Held, taps: list[Tap], pass_: Pass, producer: str | None = None) -> None:
    tensor = held.tensor
    assert tensor is not None
    pass_.held.append(held)

    def on_gradient(gradient: Tensor) -> None:
        if held.changed() and held.name not in pass_.copied:
            pass_.overwritten.add(held.name)
            return
        slopes = maps_of(held.layer, gradient)
        if pass_.stage == "loss":
            add_gradient(held, slopes, taps, producer is not None)
            if pass_.second_order:
                held.slopes = slopes
            else:
                held.release()
        else:
            add_curvature(held, slopes, taps)
            if producer is not None:
                found = weight_curvature(held, gradient)
                known = pass_.curvature.get(producer)
                pass_.curvature[producer] = found if known is None else known + found
            held.release()

    tensor.register_hook(on_gradient)  # type: ignore[no-untyped-call]
