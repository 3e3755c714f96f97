"""The arithmetic that measurements run in, whatever the caller's contexts and settings are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.network.copying import check_usable
from selector.network.law import exact_arithmetic


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Context in which a network computes in the precision of its weights.

    Without the caller's autocast, no_grad or inference_mode, and without the reduced precision of
    `torch.set_float32_matmul_precision`: the numbers are those outside of all these.

    Raises:
        SelectorError: Weights without values, or made under inference_mode.
    """
    check_usable(model)
    with torch.inference_mode(False), torch.enable_grad(), exact_arithmetic(model):
        yield


def ordinary(values: object) -> object:
    """The same structure without tensors of inference_mode, which no gradient can flow past."""

    def copied(leaf: object) -> object:
        return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf

    found: object = pytree.tree_map(copied, values)
    return found
