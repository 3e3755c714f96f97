"""Two networks walked together: layer by layer in forward order, all batches at each layer.

`HookWalk` runs both networks from their inputs up to each layer: slow, but for any network. Where
torch.fx can trace them, `selector.repair.graph_walk` gives the same visits faster.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.batches import Batches, batch_size
from selector.data.forward import read, run_batch


@dataclass(frozen=True, eq=False)
class Visit:
    """One call of a layer on one batch."""

    start: int
    stop: int
    """The batch holds the images [start, stop)."""
    call: int
    """Which call of the layer in one forward pass this is."""
    inputs: Tensor
    """What the pruned network's layer reads, given all that has been repaired before it."""
    original_inputs: Tensor
    """What the unpruned network's layer reads."""
    targets: Tensor
    """What the unpruned network's layer gives."""


class Walk(Protocol):
    """Layers must be visited in forward order; a layer may change once its visits are over."""

    def visits(self, layer: str) -> Iterator[Visit]:
        """The layer's first call on every batch; to be read to the end."""


class _LayerReached(BaseException):
    """Ends a forward pass early. Not an Exception, so that no network catches it."""


class HookWalk:
    """Runs both networks up to the layer, for every layer and batch."""

    def __init__(self, original: nn.Module, pruned: nn.Module, batches: Batches) -> None:
        self._original, self._pruned, self._batches = original, pruned, batches

    def visits(self, layer: str) -> Iterator[Visit]:
        """The layer's first call on every batch."""
        return self._visits(layer, every_call=False)

    def all_visits(self, layer: str) -> Iterator[Visit]:
        """Every call of the layer on every batch."""
        return self._visits(layer, every_call=True)

    def _visits(self, layer: str, *, every_call: bool) -> Iterator[Visit]:
        start = 0
        for number, (inputs, targets) in enumerate(read(self._original, self._batches)):
            stop = start + batch_size(inputs, targets)
            first, second = (
                _captured(model, layer, copied(inputs), number, every_call=every_call)
                for model in (self._original, self._pruned)
            )
            for call, (theirs, ours) in enumerate(zip(first, second, strict=False)):
                yield Visit(start, stop, call, ours[0], *theirs)
            start = stop


def _captured(
    model: nn.Module, layer: str, inputs: object, batch: int, *, every_call: bool
) -> list[tuple[Tensor, Tensor]]:
    """Inputs and outputs of a layer's calls."""
    found: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        value = first_argument(args, kwargs)
        if isinstance(value, Tensor) and isinstance(output, Tensor):
            # The network may go on to write in place into what is kept.
            found.append((value.clone(), output.clone()) if every_call else (value, output))
        if not every_call:
            raise _LayerReached

    handle = model.get_submodule(layer).register_forward_hook(hook, with_kwargs=True)
    try:
        run_batch(model, inputs, batch)
    except _LayerReached:
        pass
    finally:
        handle.remove()
    return found


def first_argument(args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """What a layer is called with, by place or by name."""
    return args[0] if args else kwargs.get("input")


def copied(values: Any) -> Any:
    """The same structure with copies of its tensors; what was one tensor stays one."""
    known: dict[int, Tensor] = {}

    def clone(leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in known:
            known[id(leaf)] = leaf.clone()
        return known[id(leaf)]

    return pytree.tree_map(clone, values)
