"""Which images a network classifies right, and a copy of it that says so as fast as it can."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from selector.data.forward import device_of, evaluating

Images = list[tuple[Tensor, Tensor]]
"""Batches of (inputs, labels) in memory."""


def laid_out(batches: Iterable[tuple[Tensor, Tensor]]) -> Images:
    """The images in the memory layout in which convolutions are fastest."""
    return [(x.contiguous(memory_format=torch.channels_last), y) for x, y in batches]


def correct(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Whether the largest logit is the label's, for every image: bool of shape (images,)."""
    device = device_of(model)
    with evaluating(model), torch.inference_mode():
        found = [model(x.to(device)).argmax(1) == labels.to(device) for x, labels in batches]
    return torch.cat(found)


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of the images, 0 to 1, whose largest logit is the label's."""
    return float(correct(model, batches).double().mean())


def quick(model: nn.Module) -> nn.Module:
    """A copy that computes the same in evaluation mode, in half the time.

    BatchNorm is folded into the convolutions before it, if the network can be traced.
    """
    own = copy.deepcopy(model).eval()
    try:
        folded: nn.Module = fuse(own)
    except (TraceError, RuntimeError, TypeError):
        folded = own
    return folded.to(memory_format=torch.channels_last)
