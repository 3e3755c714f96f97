"""Memory that a network takes: its tensors in a file, and all that are alive in a forward pass."""

import logging
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from selector.data.batches import batch_size
from selector.data.forward import call, evaluating

LOG = logging.getLogger("selector")


@dataclass(frozen=True)
class Footprint:
    """Memory that a network takes."""

    file_bytes: int
    """Of the tensors in a file of `save_pruned`, which has a header beside them."""
    peak_bytes: int | None
    """Most bytes of tensors that are alive at once in a forward pass: weights, inputs, outputs of
    layers. What an operator allocates inside itself is not seen. None where it was not measured."""
    images: int
    """In that forward pass."""


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context that adds up the storages that are alive, and keeps the highest sum."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Begin with tensors that exist before the first operator runs."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: set[int] = set()
        for tensor in tensors:
            self._add(tensor)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size).atexit = False

    def _remove(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return found


def file_bytes(model: nn.Module) -> int:
    """Bytes of the tensors that `save_pruned` writes."""
    tensors = [value for value in model.state_dict().values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.no_grad()
def peak_bytes(model: nn.Module, inputs: object) -> int | None:
    """Most bytes of tensors that are alive at once in one forward pass in evaluation mode.

    Args:
        model: Any network; left as found.
        inputs: As it is called with.

    Returns:
        None where the network does not run under a dispatch mode; the reason is logged.
    """
    known = [*model.parameters(), *model.buffers(), *pytree.tree_leaves(inputs)]
    try:
        with evaluating(model):
            live = _LiveBytes(leaf for leaf in known if isinstance(leaf, Tensor))
            with live:
                call(model, inputs)
    except Exception as error:  # A figure of the report is no reason to lose a pruning.
        LOG.info("peak memory was not measured: %s: %s", type(error).__name__, error)
        return None
    return live.peak


def footprint(model: nn.Module, inputs: object) -> Footprint:
    """The memory that a network takes, in a file and in a forward pass of these inputs."""
    return Footprint(file_bytes(model), peak_bytes(model, inputs), batch_size(inputs))
