"""Hooks that sum up, batch by batch, what flows through the measuring points of every group.

Two points: the consumers' inputs, where removal acts, and the producers' outputs. At a consumer's
input the layer gets a view of its own, so that the gradient is the flow through that layer alone.

A network may run parts of itself again in the backward pass (gradient checkpointing): such a call
was counted when the network ran, and only brings its gradient.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selector.network.groups import Group
from selector.network.hooks import forward_hooks
from selector.network.layers import layer_width
from selector.statistics.accumulators import GroupSums
from selector.statistics.pass_state import PassState
from selector.statistics.statistic import LayerCall, Where
from selector.statistics.taps import (
    Held,
    Tap,
    add_curvature,
    add_gradient,
    add_statistic,
    add_values,
    maps_of,
    planes_of,
    weight_curvature,
)
from selector.typing import Side


@contextmanager
def tapped(
    model: nn.Module,
    groups: Mapping[str, Group],
    sums: Sequence[Mapping[str, GroupSums]],
    state: PassState,
) -> Iterator[None]:
    """Context in which consumers report their inputs, producers their outputs, and gradients.

    What calls give is added to the sums of the first source alone.

    Args:
        model: The network.
        groups: Its groups.
        sums: For each source of gradients, those of every group.
        state: Of the pass.
    """
    points: dict[tuple[str, Side], _Point] = {}
    for name, group in groups.items():
        for part in group.running:
            if part.side not in ("in", "out"):
                continue
            key = part.layer, part.side
            point = points.setdefault(key, _Point(*key, tuple([] for _ in sums), state))
            width = layer_width(model.get_submodule(part.layer), part.side)
            for taps, of_source in zip(point.taps, sums, strict=True):
                taps.append(Tap.of(part, of_source[name].at(point.where), width))
    before = {p.layer: _watch_inputs(p) for p in points.values() if p.side == "in"}
    after = {p.layer: _watch_outputs(p) for p in points.values() if p.side == "out"}
    with forward_hooks(model, before, pre=True), forward_hooks(model, after):
        yield


Inputs = tuple[Tensor, ...]


def _watch_inputs(point: "_Point") -> Callable[[nn.Module, Inputs], Inputs]:
    def pre_hook(module: nn.Module, args: Inputs) -> Inputs:
        # A view of its own for this consumer: its gradient is the flow through this layer alone.
        inputs = args[0].view_as(args[0])
        point.see(module, inputs, None)
        return (inputs, *args[1:])

    return pre_hook


def _watch_outputs(point: "_Point") -> Callable[[nn.Module, Inputs, Tensor], Tensor]:
    def hook(module: nn.Module, args: Inputs, output: Tensor) -> Tensor:
        if point.name in point.state.copied and output._is_view():
            # PyTorch would forget the hooks on a view that is written over.
            output = output.clone()
        point.see(module, output, args[0])
        return output

    return hook


@dataclass(frozen=True)
class _Point:
    """A measuring point in one layer, and the groups whose channels pass through it."""

    layer: str
    side: Side
    taps: tuple[list[Tap], ...]
    """For each source of gradients."""
    state: PassState

    @property
    def where(self) -> Where:
        """Of the two measuring points, the one that it is."""
        return "consumers" if self.side == "in" else "producers"

    @property
    def name(self) -> str:
        """What tells it from other measuring points."""
        return f"{self.where} {self.layer}"

    def see(self, module: nn.Module, tensor: Tensor, inputs: Tensor | None) -> None:
        """Take note of a call of the layer, and of its gradient when that comes."""
        state = self.state
        if state.stage == "forward":
            state.recomputes |= state.backward and not torch.is_grad_enabled()
            held = self._hold(module, tensor)
            self._add_call(held, tensor)
        elif state.recomputes:
            held = self._hold(module, tensor)
            held.again = True
            self._match(held)
        else:
            return
        if tensor.requires_grad:
            if state.second_order and inputs is not None:
                held.inputs = inputs.detach()
            state.held.append(held)
            tensor.register_hook(self._on_gradient(held))  # type: ignore[no-untyped-call]

    def _hold(self, module: nn.Module, tensor: Tensor) -> Held:
        values = tensor.detach()
        values = values.clone() if self.name in self.state.copied else values
        maps = maps_of(module, values, self.state.images)
        # Tensors of inference mode have no version, and never a gradient to wait for.
        version = 0 if tensor.is_inference() else tensor._version
        return Held(self.name, module, tensor, maps, version)

    def _add_call(self, held: Held, tensor: Tensor) -> None:
        taps = self.taps[0]
        totals = add_values(taps, held)
        call = LayerCall(held.layer, held.maps, totals)
        for statistic in self.state.of_calls(self.where):
            add_statistic(statistic, call, taps, self.layer)
        if self.state.waits(self.where):
            held.sums = totals
        if self.where == "consumers" and self.state.maps:
            planes = planes_of(held.layer, held.maps, tensor)
            for tap in taps:
                tap.sums.pending_maps.append(tap.planes(planes))

    def _match(self, held: Held) -> None:
        """Give a call of the second backward pass the gradients that it had in the first."""
        state = self.state
        seen = state.run_again.setdefault(held.name, [])
        if state.stage == "loss":
            seen.append(held)
            return
        number = state.run_twice.get(held.name, 0)
        state.run_twice[held.name] = number + 1
        held.slopes = seen[number].slopes if number < len(seen) else None

    def _on_gradient(self, held: Held) -> Callable[[Tensor], None]:
        state = self.state

        def on_gradient(gradient: Tensor) -> None:
            held.answered = True
            if held.changed() and held.name not in state.copied:
                state.overwritten.add(held.name)
            elif state.stage == "loss":
                self._add_gradient(held, gradient)
            else:
                self._add_curvature(held, gradient)

        return on_gradient

    def _add_gradient(self, held: Held, gradient: Tensor) -> None:
        state = self.state
        taps, slopes = self.taps[state.turn], maps_of(held.layer, gradient, state.images)
        add_gradient(held, slopes, taps, self.where == "producers")
        for statistic in state.of_gradients(self.where):
            call = LayerCall(held.layer, held.maps, held.totals(), slopes)
            add_statistic(statistic, call, taps, self.layer)
        if state.second_order:
            held.slopes = slopes
        elif state.last_turn or held.again:
            held.release()

    def _add_curvature(self, held: Held, gradient: Tensor) -> None:
        slopes = maps_of(held.layer, gradient, self.state.images)
        add_curvature(held, slopes, self.taps[self.state.turn])
        if self.where == "producers":
            found = weight_curvature(held, gradient)
            known = self.state.curvature.get(self.layer)
            self.state.curvature[self.layer] = found if known is None else known + found
        held.release()
