"""Hooks that sum up, batch by batch, what flows through the measuring points of every group.

Two points: the consumers' inputs, where removal acts, and the producers' outputs. At a consumer's
input the layer gets a view of its own, so that the gradient is the flow through that layer alone.

A network may run parts of itself again in the backward pass (gradient checkpointing): such a call
was counted when the network ran, and only brings its gradient.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from selector.network.groups import Group
from selector.network.hooks import forward_hooks
from selector.network.layers import layer_width
from selector.statistics.accumulators import GroupSums
from selector.statistics.statistic import LayerCall, Moment, Statistic, Where
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

PassStage = Literal["forward", "loss", "curvature"]


@dataclass
class PassState:
    """What the hooks must know of the pass and of the current batch."""

    statistics: Sequence[Statistic] = ()
    """What is measured beyond the moments of quantities."""
    backward: bool = False
    second_order: bool = False
    """Whether a second backward pass, of projected outputs, follows each first one."""
    stage: PassStage = "forward"
    """What runs: the network, the backward pass of its loss, or that of its projected outputs."""
    recomputes: bool = False
    """Whether layers ran without a gradient in a pass that needs one: reentrant checkpointing runs
    them again in the backward pass."""
    copied: set[str] = field(default_factory=set)
    """Tensors that the network overwrites in place before their gradient comes: copied first."""
    overwritten: set[str] = field(default_factory=set)
    """Such tensors found in this batch, whose sums are void: the batch must be read again."""
    curvature: dict[str, Tensor] = field(default_factory=dict)
    """Producer -> squared gradients of projected outputs, summed over images, like its weight."""
    images: int = 0
    """Of the current batch."""
    held: list[Held] = field(default_factory=list)
    """What is kept for gradients that are still to come."""
    run_again: dict[str, list[Held]] = field(default_factory=dict)
    """Calls of each measuring point in the first backward pass, in their order."""
    run_twice: dict[str, int] = field(default_factory=dict)
    """How many of them the second backward pass has come to."""

    def of(self, moment: Moment, where: Where) -> list[Statistic]:
        """The statistics of one kind at one measuring point."""
        return [s for s in self.statistics if s.of == moment and s.where == where]

    @property
    def maps(self) -> bool:
        """Whether whole maps are looked at."""
        return any(statistic.whole_maps for statistic in self.statistics)

    def note_forgotten(self) -> None:
        """Note tensors that were written over and got no gradient.

        A linear layer's output for tokens is a view, and PyTorch forgets hooks on a view that is
        changed in place.
        """
        forgotten = (held for held in self.held if held.changed() and not held.answered)
        self.overwritten |= {held.name for held in forgotten} - self.copied

    def finish_batch(self) -> None:
        """Let go of the batch, whether or not every gradient came: hooks are cycles otherwise."""
        for held in self.held:
            held.release()
        self.held.clear()
        self.run_again.clear()
        self.run_twice.clear()


@contextmanager
def tapped(
    model: nn.Module, groups: Mapping[str, Group], sums: Mapping[str, GroupSums], state: PassState
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
    before = {layer: _watch_inputs(layer, taps, state) for layer, taps in inputs.items()}
    after = {layer: _watch_outputs(layer, taps, state) for layer, taps in outputs.items()}
    with forward_hooks(model, before, pre=True), forward_hooks(model, after):
        yield


Inputs = tuple[Tensor, ...]


def _watch_inputs(
    layer: str, taps: list[Tap], state: PassState
) -> Callable[[nn.Module, Inputs], Inputs]:
    point = _Point(layer, "consumers", taps, state)

    def pre_hook(module: nn.Module, args: Inputs) -> Inputs:
        # A view of its own for this consumer: its gradient is the flow through this layer alone.
        inputs = args[0].view_as(args[0])
        point.see(module, inputs, None)
        return (inputs, *args[1:])

    return pre_hook


def _watch_outputs(
    layer: str, taps: list[Tap], state: PassState
) -> Callable[[nn.Module, Inputs, Tensor], Tensor]:
    point = _Point(layer, "producers", taps, state)

    def hook(module: nn.Module, args: Inputs, output: Tensor) -> Tensor:
        if point.name in state.copied and output._is_view():
            # PyTorch would forget the hooks on a view that is written over.
            output = output.clone()
        point.see(module, output, args[0])
        return output

    return hook


@dataclass(frozen=True)
class _Point:
    """A measuring point in one layer, and the groups whose channels pass through it."""

    layer: str
    where: Where
    taps: list[Tap]
    state: PassState

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
        totals = add_values(self.taps, held)
        call = LayerCall(held.layer, held.maps, totals)
        for statistic in self.state.of("call", self.where):
            add_statistic(statistic, call, self.taps, self.layer)
        if self.state.of("gradient", self.where):
            held.sums = totals
        if self.where == "consumers" and self.state.maps:
            planes = planes_of(held.layer, held.maps, tensor)
            for tap in self.taps:
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
        slopes = maps_of(held.layer, gradient, self.state.images)
        add_gradient(held, slopes, self.taps, self.where == "producers")
        for statistic in self.state.of("gradient", self.where):
            call = LayerCall(held.layer, held.maps, held.totals(), slopes)
            add_statistic(statistic, call, self.taps, self.layer)
        if self.state.second_order:
            held.slopes = slopes
        else:
            held.release()

    def _add_curvature(self, held: Held, gradient: Tensor) -> None:
        add_curvature(held, maps_of(held.layer, gradient, self.state.images), self.taps)
        if self.where == "producers":
            found = weight_curvature(held, gradient)
            known = self.state.curvature.get(self.layer)
            self.state.curvature[self.layer] = found if known is None else known + found
        held.release()
