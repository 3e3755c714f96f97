"""Copies of networks that plain `copy.deepcopy` refuses, and networks without their compiler."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from selector.errors import SelectorError


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy that shares nothing with the network.

    A tensor that a network keeps on itself from an earlier forward pass (an activation, which
    `copy.deepcopy` refuses) is copied without its history. A network of `torch.compile` is copied
    as it was before compilation.
    """
    with _DetachedCopies():
        return copy.deepcopy(uncompiled(model))


def uncompiled(model: nn.Module) -> nn.Module:
    """The network inside the wrapper of `torch.compile`, or the network itself."""
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    return model


def check_usable(model: nn.Module) -> None:
    """Make sure that the weights can be read and changed.

    Raises:
        SelectorError: A quantised module, or a tensor of complex numbers, or made
            in inference mode.
    """
    for name, module in model.named_modules():
        what = f"{name!r}" if name else "the network"
        if ".quantized" in type(module).__module__ or "quantization" in type(module).__module__:
            raise SelectorError(
                f"{what} ({type(module).__name__}) is quantised, and quantised layers cannot be "
                "cut; pass the network as it was before, and quantise the pruned one"
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        why = _unusable(tensor)
        if why is not None:
            raise SelectorError(f"{name!r} {why}")


def _unusable(tensor: Tensor) -> str | None:
    """Why a tensor can be neither read nor changed, and what to do, or None where it can."""
    if tensor.is_inference():
        return (
            "was made under torch.inference_mode, so its gradient and its value cannot be "
            "followed; build or load the network outside inference mode"
        )
    if tensor.is_complex() and isinstance(tensor, nn.Parameter):
        return (
            "holds complex numbers, for which no metric is defined; keep real and imaginary parts "
            "in two parameters"
        )
    return None


class _DetachedCopies(TorchFunctionMode):
    """Deep copies of tensors that are not leaves of autograd's graph lose their history."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                with torch.no_grad():
                    memo[id(tensor)] = tensor.detach().clone()
            return cast(Tensor, memo[id(tensor)])
        return func(*args, **(kwargs or {}))
