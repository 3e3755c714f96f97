"""A user's batches: what they must be, how many images one holds, and parts of them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from selector.data.checks import check_container
from selector.errors import SelectorError

Batches = Iterable[tuple[object, object]]
"""Any re-iterable of (inputs, targets): a DataLoader, a list, or a class of the user's own."""


def check_batches(batches: Batches) -> None:
    """Make sure that batches can be read more than once and hold (inputs, targets).

    Raises:
        SelectorError: Not iterable, a one-shot iterator, a data set of single images, empty, or
            not pairs.
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
    check_container(batches)
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
            + "; where labels are not needed, pass (inputs, None)"
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
    if len(first) != len(again) or not all(map(_same, first, again)):
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


def _same(one: object, other: object) -> bool:
    """Whether two values are equal; a NaN equals a NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape:
            return False
        return torch.equal(one, other) or torch.allclose(one, other, 0.0, 0.0, equal_nan=True)
    return one is other or np.array_equal(np.asarray(one), np.asarray(other))


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


def batch_size(inputs: object, targets: object = None, outputs: object = None) -> int:
    """Number of images of a batch.

    Targets and outputs come one an image, while an input may be a table, an adjacency matrix, or
    time-first. So the number is the first length of a target, else of an output, that an input has
    too: as the length of a tensor or a list, else of any dimension. Where targets and outputs say
    nothing, it is the length of the first input.

    Args:
        inputs: What the network is called with, or any other values that come one an image.
        targets: The targets of the batch, where they are at hand.
        outputs: What the network gave for it, where that is at hand.

    Raises:
        SelectorError: Nothing in the batch has an image dimension.
    """
    wanted = [*_lengths(targets), *_lengths(outputs)]
    arguments = inputs if isinstance(inputs, tuple | list) else [inputs]
    given = [length for argument in arguments for length in _lengths(argument)]
    for candidates in (given, _dimensions(inputs), [len(arguments)]):
        for length in wanted:
            if length in candidates:
                return length
    if not given and not wanted:
        raise SelectorError("a batch holds no tensor with an image dimension")
    return (given or wanted)[0]


def _lengths(values: object) -> list[int]:
    """Lengths of the tensors and lists in a structure, the likeliest numbers of images first."""
    if isinstance(values, Tensor):
        return [len(values)] if values.ndim else []
    if isinstance(values, Mapping):
        return [length for value in values.values() for length in _lengths(value)]
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        fields = dataclasses.fields(values)
        return [length for field in fields for length in _lengths(getattr(values, field.name))]
    if isinstance(values, tuple | list) and values:
        inside = [_lengths(value) for value in values]
        nested = [length for lengths in inside for length in lengths]
        # Columns: tensors of one length. Otherwise a list holds one thing an image.
        columns = all(isinstance(v, Tensor) for v in values) and len(set(map(tuple, inside))) == 1
        first = columns or isinstance(values, tuple)
        return [*nested, len(values)] if first else [len(values), *nested]
    return []


def _dimensions(values: object) -> set[int]:
    tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    return {length for tensor in tensors for length in tensor.shape}


def rows(values: object, start: int, stop: int, images: int | None = None) -> object:
    """The same structure with only some images; what does not come one an image stays whole.

    Args:
        values: Inputs, outputs or targets.
        start: The first image.
        stop: The image after the last.
        images: Images of the batch; the length of the first value by default.
    """
    return picked(values, slice(start, stop), batch_size(values) if images is None else images)


def picked(values: object, index: slice | list[int], images: int) -> object:
    """The same structure with only the images of an index; the rest stays whole.

    A tensor comes one an image where its length is the number of images; so does a list of that
    length, unless it holds such tensors itself (columns, as a DataLoader gives them).
    """
    if isinstance(values, Tensor):
        return values[index] if values.ndim and len(values) == images else values
    if isinstance(values, Mapping):
        items = {name: picked(value, index, images) for name, value in values.items()}
        return items if type(values) is dict else _rebuilt(values, items)
    if isinstance(values, tuple | list):
        if one_an_image(values, images):
            numbers = range(images)[index] if isinstance(index, slice) else index
            chosen = [values[number] for number in numbers]
            return chosen if isinstance(values, list) else tuple(chosen)
        parts = [picked(value, index, images) for value in values]
        if isinstance(values, tuple) and hasattr(values, "_fields"):
            return tuple.__new__(type(values), parts)
        return tuple(parts) if isinstance(values, tuple) else parts
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        names = [field.name for field in dataclasses.fields(values) if field.init]
        kept = {name: picked(getattr(values, name), index, images) for name in names}
        return dataclasses.replace(values, **kept)
    return values


def one_an_image(values: Sequence[object], images: int) -> bool:
    """Whether a sequence holds one value for each image, and not columns of them."""
    if len(values) != images:
        return False
    columns = [isinstance(v, Tensor) and v.ndim > 0 and len(v) == images for v in values]
    if isinstance(values, tuple):
        return not hasattr(values, "_fields") and not any(columns)
    return not all(columns)


def _rebuilt(values: Mapping[object, object], items: dict[object, object]) -> object:
    """A mapping of the user's own kind, where it can be made from a dictionary."""
    make: Callable[[dict[object, object]], object] = type(values)
    try:
        return make(items)
    except Exception:
        return items
