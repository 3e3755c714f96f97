"""A digest of a network, its data and some options: what a stored state belongs to."""

import functools
import hashlib
import json
from collections.abc import Sequence
from types import FunctionType

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.calibration import Calibration
from selector.tensor_files import add_tensor


def fingerprint_of(model: nn.Module, data: Sequence[Calibration], *options: object) -> str:
    """A digest of the network's tensors, the first batches, the loss, and some options.

    Args:
        model: The unpruned network.
        data: The user's data in one part or several; the first batch of each stands for all.
        options: Whatever else decides what is done; by their text.
    """
    digest = hashlib.sha256()
    loss = data[0].loss
    digest.update(json.dumps([*map(str, options), _loss_text(loss)]).encode())
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


def _loss_text(loss: object) -> str:
    """What tells one loss from another: its name, its settings, a function's code."""
    if isinstance(loss, functools.partial):
        return f"{_loss_text(loss.func)} {loss.args} {sorted(loss.keywords.items())}"
    if isinstance(loss, nn.Module):
        settings = {k: v for k, v in vars(loss).items() if isinstance(v, str | int | float)}
        return f"{type(loss).__qualname__} {sorted(settings.items())}"
    if isinstance(loss, FunctionType):
        code = hashlib.sha256(loss.__code__.co_code).hexdigest()
        return f"{loss.__module__} {loss.__qualname__} {code}"
    return str(type(loss))
