"""What a cut must give, made without the product's own masking: hooks that zero activations.

A channel that is cut exists nowhere: what its producers give is zeroed, and so is what its
consumers read. Normalisations over the channels (LayerNorm, RMSNorm, GroupNorm and the like) are
computed over the channels that are kept, since removing some changes their statistics.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from selector.network.surgery import Cut

CONVOLUTION = nn.modules.conv._ConvNd
PER_CHANNEL = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.PReLU,
    CONVOLUTION,
)
"""Layers between producers and consumers that treat every channel by itself."""


@contextmanager
def zeroed(model: nn.Module, cuts: Iterable[Cut]) -> Iterator[None]:
    """Context in which the positions of these cuts are zero on both sides of every layer."""
    handles: list[RemovableHandle] = []
    try:
        for cut in cuts:
            module = _module_of(model, cut.layer)
            if module is not None and cut.indices:
                handles.append(_hooked(module, cut))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooked(module: nn.Module, cut: Cut) -> RemovableHandle:
    gone = torch.tensor(cut.indices)
    if cut.side == "in":

        def enter(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0].index_fill(channel_dimension(layer, args[0]), gone, 0), *args[1:])

        return module.register_forward_pre_hook(enter)

    def leave(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        dimension = channel_dimension(layer, output)
        if cut.side == "out" or isinstance(layer, PER_CHANNEL):
            return output.index_fill(dimension, gone, 0)
        lost = set(cut.indices)
        kept = torch.tensor([i for i in range(output.shape[dimension]) if i not in lost])
        found = restricted(layer, kept)(args[0].index_select(dimension, kept))
        return torch.zeros_like(output).index_copy(dimension, kept, found)

    return module.register_forward_hook(leave)


def restricted(layer: nn.Module, kept: Tensor) -> nn.Module:
    """A copy of a normalisation with the parameters of the kept channels alone."""
    small = copy.copy(layer)
    small._forward_hooks = type(layer._forward_hooks)()
    width = max((t.numel() for t in layer.parameters(recurse=False)), default=0)

    def chosen(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.numel() != width:
            return tensor
        return tensor.detach().index_select(tensor.shape.index(width), kept)

    parts = {name: chosen(tensor) for name, tensor in layer._parameters.items()}
    small._parameters = {n: None if t is None else nn.Parameter(t) for n, t in parts.items()}
    small._buffers = {name: chosen(tensor) for name, tensor in layer._buffers.items()}
    if hasattr(layer, "normalized_shape"):
        vars(small)["normalized_shape"] = (len(kept),)
    if hasattr(layer, "num_channels"):
        vars(small)["num_channels"] = len(kept)
    return small


def channel_dimension(layer: nn.Module, values: Tensor) -> int:
    """The dimension that runs over a layer's channels: the last, but 1 for maps of convolutions."""
    if isinstance(layer, PER_CHANNEL) or type(layer).__name__.endswith("2d"):
        return 1
    return 1 if isinstance(layer, nn.GroupNorm) else values.ndim - 1


def _module_of(model: nn.Module, name: str) -> nn.Module | None:
    """The module of that name, or the owner of the parameter of that name."""
    modules = dict(model.named_modules())
    return modules.get(name, modules.get(name.rpartition(".")[0]))
