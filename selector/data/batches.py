"""A user's batches: what they must be, checked once; their parts and rows."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from selector.errors import SelectorError

Batches = Iterable[tuple[object, object]]
"""Any re-iterable of (inputs, targets): a DataLoader, a list, or a class of the user's own."""


def check_batches(batches: Batches) -> None:
    """Make sure that batches can be read more than once and hold (inputs, targets).

    Raises:
        SelectorError: Not iterable, a one-shot iterator, empty, or not pairs.
    """
    if not isinstance(batches, CheckedBatches):
        first_batch(batches)


def first_batch(batches: Batches) -> tuple[object, object]:
    """The first (inputs, targets); starts one reading.

    Raises:
        SelectorError: As `check_batches`.
    """
    if isinstance(batches, CheckedBatches):
        return batches.first
    try:
        iterator = iter(batches)
    except TypeError:
        raise SelectorError(
            f"batches must be a re-iterable of (inputs, targets), not {type(batches).__name__}; "
            "pass a DataLoader or a list"
        ) from None
    if iterator is batches:
        raise SelectorError(
            f"batches can be read only once (a {type(batches).__name__}); "
            "pass something re-iterable: a DataLoader or list(batches)"
        )
    first: object = next(iterator, None)
    if first is None:
        raise SelectorError("batches are empty; pass at least one batch of (inputs, targets)")
    if not isinstance(first, tuple | list) or len(first) != 2:
        raise SelectorError(
            f"a batch must be a pair (inputs, targets), not a {type(first).__name__}"
            + (f" of {len(first)}" if isinstance(first, tuple | list) else "")
        )
    inputs, targets = first
    return inputs, targets


def check_repeatable(batches: Batches) -> None:
    """Make sure that a second reading gives the same images: losses are compared across readings.

    Raises:
        SelectorError: The first batch differs between two readings.
    """
    if isinstance(batches, CheckedBatches) and batches.repeatable:
        return
    one, other = first_batch(batches), tuple(next(iter(batches)))
    first, again = pytree.tree_leaves(one), pytree.tree_leaves(other)
    same = len(first) == len(again) and all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y
        for x, y in zip(first, again, strict=True)
    )
    if not same:
        raise SelectorError(
            "the first batch changed between two readings: a shuffling sampler or random "
            "augmentation; pass shuffle=False without augmentation, or list(batches)"
        )
    if isinstance(batches, CheckedBatches):
        batches.repeatable = True


class CheckedBatches:
    """Batches that were checked when this was made, with the first one at hand.

    Making it starts one reading of the data; `first` costs no further one.

    Args:
        batches: Re-iterable of (inputs, targets).

    Raises:
        SelectorError: As `check_batches`.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches: Batches = batches
        self.first: tuple[object, object] = first_batch(batches)
        self.repeatable = False
        """Whether two readings were compared and found to be the same."""

    def __iter__(self) -> Iterator[tuple[object, object]]:
        """Read all batches once."""
        return iter(self.batches)


class Part:
    """Every `step`-th batch of a user's data, starting at `first`, so that parts do not overlap."""

    def __init__(self, batches: Batches, first: int, step: int) -> None:
        self._batches, self._first, self._step = batches, first, step

    def __iter__(self) -> Iterator[tuple[object, object]]:
        """Read the whole, keep the part."""
        return islice(iter(self._batches), self._first, None, self._step)


def split_batches(batches: Batches, parts: int, purpose: str) -> tuple[Part, ...]:
    """Disjoint parts of the data: the first batch goes to the first part, and so on in turn.

    Raises:
        SelectorError: Fewer batches than parts, or batches that change between readings.
    """
    check_repeatable(batches)
    count = sum(1 for _ in islice(iter(batches), parts))
    if count < parts:
        raise SelectorError(
            f"{purpose} needs at least {parts} batches, for {parts} parts that do not overlap, "
            f"not {count}; pass smaller batches, or more images"
        )
    return tuple(Part(batches, first, parts) for first in range(parts))


def batch_size(values: object) -> int:
    """Length of the first dimension of the first tensor found."""
    for leaf in pytree.tree_leaves(values):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return int(leaf.shape[0])
    raise SelectorError("a batch holds no tensor with an image dimension")


def rows(values: object, start: int, stop: int) -> object:
    """The same structure with only some rows of each tensor."""

    def cut(leaf: object) -> object:
        return leaf[start:stop] if isinstance(leaf, Tensor) and leaf.ndim else leaf

    kept: object = pytree.tree_map(cut, values)
    return kept
