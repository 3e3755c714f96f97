"""Layers whose class has a forward of its own: the plain layer that they come to.

Convolutions that pad what they read, as TensorFlow's do, are the common case: `Conv2dSame` of timm,
`Conv2dStaticSamePadding` of EfficientNet. What such a layer hands to PyTorch's own function is seen
when it runs, and the layer is refitted as if it were written in plain words.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from selector.network.layers import CONVOLUTION

PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FORWARDS = tuple(kind.forward for kind in (*PLAIN, *TRANSPOSED, nn.Linear))
INNER_FORWARDS = tuple(kind._conv_forward for kind in (*PLAIN, CONVOLUTION))
CONVOLVING = (functional.conv1d, functional.conv2d, functional.conv3d)
ORDER = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
"""Arguments of these functions; those of `linear` are the first three."""


def is_plain(layer: nn.Module) -> bool:
    """Whether a convolution or linear layer runs as PyTorch's own does."""
    inner = getattr(type(layer), "_conv_forward", None)
    return type(layer).forward in FORWARDS and (inner is None or inner in INNER_FORWARDS)


def plain_reading(layer: nn.Module, inputs: Tensor) -> tuple[nn.Module, Tensor] | None:
    """The plain layer that a layer comes to, with the very same weights, and what that reads.

    Args:
        layer: A convolution or linear layer.
        inputs: What it is called with.

    Returns:
        None where it does more than hand its weight to PyTorch's function once, and return that.
    """
    if is_plain(layer):
        return layer, inputs
    watch = _Watch(cast(Tensor, layer.weight))
    with torch.no_grad(), watch:
        # .forward: the hooks of the layer must not see this call.
        output = layer.forward(inputs)
    if len(watch.calls) != 1:
        return None
    function, named, found = watch.calls[0]
    same = isinstance(output, Tensor) and (output is found or torch.equal(output, found))
    if not same or named.get("bias") is not layer.bias or not isinstance(named["input"], Tensor):
        return None
    return _plain(layer, function, named), named["input"]


def _plain(layer: nn.Module, function: object, named: Mapping[str, Any]) -> nn.Module:
    """A layer of PyTorch's that shares the weights and makes that call."""
    weight = cast(nn.Parameter, layer.weight)
    found: nn.Module
    if function is functional.linear:
        outputs, inputs = weight.shape
        found = nn.Linear(inputs, outputs, bias=False, device="meta")
    else:
        ways = {name: named[name] for name in ORDER[3:] if name in named}
        groups = ways.get("groups", 1)
        kind = PLAIN[weight.ndim - 3]
        sizes = groups * weight.shape[1], weight.shape[0], tuple(weight.shape[2:])
        found = kind(*sizes, bias=False, device="meta", **ways)  # type: ignore[arg-type]
    found.weight, found.bias = weight, cast(nn.Parameter | None, layer.bias)
    return found


class _Watch(TorchFunctionMode):
    """Sees the calls that are given a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._weight = weight
        self.calls: list[tuple[object, Mapping[str, Any], Tensor]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = {**dict(zip(ORDER, args, strict=False)), **(kwargs or {})}
        output = func(*args, **(kwargs or {}))
        if func in (*CONVOLVING, functional.linear) and named["weight"] is self._weight:
            self.calls.append((func, named, output))
        return output
