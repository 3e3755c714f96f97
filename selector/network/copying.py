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
    while isinstance(inner := getattr(model, "_modules", {}).get("_orig_mod"), nn.Module):
        model = inner
    return model


def check_usable(model: nn.Module) -> None:
    """Make sure that the weights can be read and changed.

    Raises:
        SelectorError: A tensor that was made in inference mode.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_inference():
            raise SelectorError(
                f"{name!r} was made under torch.inference_mode, so its gradient and its value "
                "cannot be followed; build or load the network outside inference mode"
            )


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
