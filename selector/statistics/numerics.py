"""The arithmetic that measurements run in, whatever the caller's contexts and settings are."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.errors import SelectorError
from selector.network.law import exact_arithmetic


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Context in which a network computes in the precision of its weights.

    Without the caller's autocast, no_grad or inference_mode, and without the reduced precision of
    `torch.set_float32_matmul_precision`: the numbers are those outside of all these.

    Raises:
        SelectorError: Weights without values, or made under inference_mode.
    """
    check_weights(model)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(False), torch.enable_grad(), exact_arithmetic(model):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def check_weights(model: nn.Module) -> None:
    """Make sure that parameters and buffers have values that can be measured.

    Raises:
        SelectorError: One is on the meta device, or was made under inference_mode; it is named.
    """
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise SelectorError(
                f"{name!r} is on the meta device and has no values; load the network's weights"
            )
        if tensor.is_inference():
            raise SelectorError(
                f"{name!r} was made under torch.inference_mode and cannot take part in gradients; "
                "build the network, and load its weights, outside of inference_mode"
            )


def ordinary(values: object) -> object:
    """The same structure without tensors of inference_mode, which no gradient can flow past."""

    def copied(leaf: object) -> object:
        return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf

    found: object = pytree.tree_map(copied, values)
    return found
