"""A digest of a network, its data and some options: what a stored state belongs to."""

import hashlib
import json

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.calibration import Calibration


def fingerprint_of(model: nn.Module, calibration: Calibration, *options: object) -> str:
    """A digest of the network's tensors, the first batch, the loss, and some options.

    Args:
        model: The unpruned network.
        calibration: The user's data; the first batch stands for all.
        options: Whatever else decides what is done; by their text.
    """
    digest = hashlib.sha256()
    loss = calibration.loss
    text = [*map(str, options), getattr(loss, "__qualname__", str(type(loss)))]
    digest.update(json.dumps(text).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        _add(digest, tensor)
    for leaf in pytree.tree_leaves(calibration.first):
        if isinstance(leaf, Tensor):
            _add(digest, leaf)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", tensor: Tensor) -> None:
    values = tensor.detach().cpu().contiguous()
    digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().tobytes() if values.numel() else b"")
