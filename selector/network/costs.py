"""What a network costs: multiply-accumulates and parameters per layer, now and after a cut."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from selector.data.batches import batch_size
from selector.data.forward import call, evaluating
from selector.network.attention import is_attention, is_packed_attention
from selector.network.coupling.watching import OperatorWatch, nothing_fused
from selector.network.groups import Group
from selector.network.hooks import Hook, forward_hooks
from selector.network.layers import (
    CONVOLUTION,
    NORMALISATION,
    is_depthwise,
    is_statistics_norm,
    layer_width,
    reading_weights,
)

Measure = Literal["macs", "parameters", "weights"]


@dataclass(frozen=True)
class LayerCost:
    """What one layer with parameters costs at its present width."""

    macs: float
    """Multiply-accumulates per image; zero for everything but convolutions and linear layers."""
    weights: int
    """Size of the weight matrix or filter bank; zero for normalisation layers."""
    extras: int
    """Parameters that go with the outputs alone: biases, or a normalisation's scale and shift."""
    outputs: int
    inputs: int
    channel_wise: bool
    """Depthwise convolutions and normalisation: outputs and inputs are the same channels."""
    convolution: bool
    products: float = 0.0
    """Multiply-accumulates per image of products that its outputs alone make: of attention, queries
    with keys, and what comes of that with values."""


@dataclass(frozen=True)
class Costs:
    """Costs of a whole network, by layer."""

    layers: Mapping[str, LayerCost]
    fixed_parameters: int
    """Parameters outside the layers counted above; no removal changes them."""
    fixed_macs: float = 0.0
    """Multiply-accumulates per image outside these layers: recurrent layers, functions called
    without a layer. No removal changes them."""

    def total(self, measure: Measure, removed: Mapping[Group, int] | None = None) -> float:
        """The network's cost, after so many channels of every group are gone.

        Exact for groups whose channels occupy equally many positions in each of their layers.

        Args:
            measure: `macs` per image of convolutions and matrix products; `parameters`, all of
                them; or `weights`, those of the convolutions alone.
            removed: Group -> number of channels removed; none by default.
        """
        lost = lost_positions(removed or {})
        fixed = {"parameters": float(self.fixed_parameters), "macs": self.fixed_macs}
        total = fixed.get(measure, 0.0)
        for name, layer in self.layers.items():
            total += layer_total(layer, measure, lost[name, "out"], lost[name, "in"])
        return total


def lost_positions(removed: Mapping[Group, int]) -> dict[tuple[str, str], float]:
    """Positions that every side of every layer loses with so many channels of every group."""
    lost: dict[tuple[str, str], float] = defaultdict(float)
    for group, count in removed.items():
        for part in group.sided:
            side = "in" if part.side == "in" else "out"
            lost[part.layer, side] += count * len(part.indices) / group.channels
    return lost


def layer_total(layer: LayerCost, measure: Measure, lost_out: float, lost_in: float) -> float:
    """What a layer costs when so many positions of its outputs and inputs are gone.

    Bilinear in both: `selector/planning/running_cost.py` relies on that.
    """
    outputs = 1 - lost_out / layer.outputs
    both = outputs if layer.channel_wise else outputs * (1 - lost_in / layer.inputs)
    if measure == "macs":
        return layer.macs * both + layer.products * outputs
    if measure == "weights":
        return layer.weights * both if layer.convolution else 0.0
    return layer.weights * both + layer.extras * outputs


@torch.no_grad()
def count_costs(model: nn.Module, inputs: object) -> Costs:
    """Count what a forward pass of these inputs costs per image, layer by layer.

    Multiply-accumulates are those of convolutions and matrix products, counted where they run (a
    layer called twice counts twice); additions of biases, normalisation and pooling are left out.
    Those of convolutions and linear layers are known by layer; what the operators of the whole pass
    add up to beyond that (steps of recurrent layers, functions) is one number. The products of
    attention belong to the layer that makes its queries.
    """
    counted = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, CONVOLUTION | nn.Linear | NORMALISATION | nn.RNNBase)
        or is_statistics_norm(layer)
        or is_packed_attention(layer)
        or (isinstance(layer, nn.PReLU) and layer.num_parameters > 1)
    }
    macs, products, total = _measured_macs(model, inputs, counted)
    images = batch_size(inputs)
    seen: set[int] = set()
    layers = {
        name: _layer_cost(layer, macs[name] / images, products[name] / images, seen)
        for name, layer in counted.items()
    }
    known = sum(layer.weights + layer.extras for layer in layers.values())
    beyond = total - sum(macs.values()) - sum(products.values())
    return Costs(
        layers,
        sum(p.numel() for p in model.parameters()) - known,
        beyond / images if beyond > 1e-6 * total else 0.0,
    )


def _measured_macs(
    model: nn.Module, inputs: object, counted: Mapping[str, nn.Module]
) -> tuple[dict[str, float], dict[str, float], float]:
    """Multiply-accumulates of a forward pass: layer -> its own, its products, and those of all."""
    macs: dict[str, float] = defaultdict(float)
    products: dict[str, float] = defaultdict(float)
    watch = OperatorWatch(count=True)
    attending: list[_Attending] = []

    def counter(name: str) -> Hook:
        def count(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs: object = args[0]
            values = inputs.data if isinstance(inputs, PackedSequence) else args[0]
            own = _macs(layer, values, output)
            macs[name] += own
            if attending:
                attending[-1].note(name, own)

        return count

    def enter(*_: object) -> None:
        attending.append(_Attending(watch.macs))

    def leave(name: str) -> Callable[..., None]:
        def left(*_: object) -> None:
            done = attending.pop()
            inside = watch.macs - done.before
            first = done.first if name not in counted or done.first == name else None
            if first is not None:
                products[first] += max(0.0, inside - done.layers)
            if attending:
                attending[-1].layers += inside

        return left

    hooks = {
        name: counter(name)
        for name, layer in counted.items()
        if isinstance(layer, CONVOLUTION | nn.Linear | nn.RNNBase) or is_packed_attention(layer)
    }
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if is_attention(module):
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave(name)).remove)
        stack.enter_context(forward_hooks(model, hooks))
        for context in (evaluating(model), nothing_fused(model), watch):
            stack.enter_context(context)
        call(model, inputs)
    return macs, products, watch.macs


@dataclass
class _Attending:
    """A call of an attention module that is under way."""

    before: float
    """Multiply-accumulates of the pass until it began."""
    layers: float = 0.0
    """Those of layers and of other attention in it."""
    first: str | None = None
    """The layer that was called first: it makes the queries."""

    def note(self, name: str, macs: float) -> None:
        """Take in a layer."""
        self.layers += macs
        self.first = self.first or name


def _macs(layer: nn.Module, inputs: Tensor, output: Tensor) -> float:
    if isinstance(layer, CONVOLUTION):
        if layer.transposed:
            return inputs.numel() * layer.weight.numel() / layer.in_channels
        return output.numel() * layer.weight.numel() / layer.out_channels
    if isinstance(layer, nn.RNNBase):
        # What reads the inputs; what goes from step to step is no matter of channels.
        weights = sum(layer.get_parameter(name).numel() for name in reading_weights(layer))
        return inputs.numel() / int(layer.input_size) * weights
    assert isinstance(layer, nn.Linear)
    return float(output.numel() * layer.in_features)


def _layer_cost(layer: nn.Module, macs: float, products: float, seen: set[int]) -> LayerCost:
    """The cost of a layer; parameters shared with an earlier layer (`seen`) are not its own."""
    own = {name: p for name, p in layer.named_parameters(recurse=False) if id(p) not in seen}
    seen.update(map(id, own.values()))
    sizes = {name: p.numel() for name, p in own.items()}
    between = isinstance(layer, NORMALISATION | nn.PReLU) or is_statistics_norm(layer)
    # A parametrised layer has no weight of its own; it is refused, and its parameters are fixed.
    weights = 0 if between else sum(sizes.get(name, 0) for name in reading_weights(layer))
    convolution = isinstance(layer, CONVOLUTION)
    return LayerCost(
        macs=macs,
        weights=weights,
        extras=sum(sizes.values()) - weights,
        outputs=layer_width(layer, "out"),
        inputs=layer_width(layer, "in"),
        channel_wise=between or is_depthwise(layer),
        convolution=convolution,
        products=products,
    )


def saved_per_channel(costs: Costs, group: Group, measure: Measure) -> float:
    """What removing the first channel of a group saves, all else as it is."""
    return costs.total(measure) - costs.total(measure, {group: 1})
