"""A digest of a network, its data and some options: what a stored state belongs to."""

import functools
import hashlib
import json
from collections.abc import Sequence
from types import FunctionType

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.calibration import Calibration
from selector.data.own_forward import own_forward
from selector.tensor_files import add_tensor


def fingerprint_of(model: nn.Module, data: Sequence[Calibration], *options: object) -> str:
    """A digest of the network's tensors, the first batches, the functions, and some options.

    Args:
        model: The unpruned network.
        data: The user's data in one part or several; the first batch of each stands for all.
        options: Whatever else decides what is done; by their text.
    """
    digest = hashlib.sha256()
    loss, forward = data[0].loss, own_forward(model)
    functions = [_text_of(loss), *([] if forward is None else [_text_of(forward)])]
    digest.update(json.dumps([*map(str, options), *functions]).encode())
    tensors = dict(model.state_dict())
    if isinstance(loss, nn.Module):
        tensors |= {f"loss.{name}": tensor for name, tensor in loss.state_dict().items()}
    for name, tensor in tensors.items():
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            add_tensor(digest, tensor)
        else:  # What `get_extra_state` gives.
            digest.update(repr(tensor).encode())
    for part in data:
        for leaf in pytree.tree_leaves(part.first):
            if isinstance(leaf, Tensor):
                add_tensor(digest, leaf)
    return digest.hexdigest()


def _text_of(function: object) -> str:
    """What tells one loss or forward from another: its name, its settings, a function's code."""
    if isinstance(function, functools.partial):
        return f"{_text_of(function.func)} {function.args} {sorted(function.keywords.items())}"
    if isinstance(function, nn.Module):
        settings = {k: v for k, v in vars(function).items() if isinstance(v, str | int | float)}
        return f"{type(function).__qualname__} {sorted(settings.items())}"
    if isinstance(function, FunctionType):
        code = hashlib.sha256(function.__code__.co_code).hexdigest()
        return f"{function.__module__} {function.__qualname__} {code}"
    return str(type(function))
