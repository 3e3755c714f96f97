"""Random samples of images from a user's batches."""

from collections.abc import Callable, Iterator
from itertools import groupby

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from selector.data.batches import Batches, batch_size, check_batches
from selector.errors import SelectorError

Draw = Callable[[int, torch.Generator], Batches]
"""`draw(images, generator)`: re-iterable batches of so many images, no image twice."""


def drawn_from(batches: Batches) -> Draw:
    """Draw from any re-iterable batches, without replacement within one draw.

    The batches are read once to be counted, and once for every draw; what is drawn comes in the
    order of the batches, in batches no larger than theirs.

    Args:
        batches: Re-iterable of (inputs, targets), the same images on every reading.

    Raises:
        SelectorError: Unusable batches; and, by the function returned, more images than there are.
    """
    check_batches(batches)
    sizes = [batch_size(inputs) for inputs, _ in batches]
    ends = torch.tensor(sizes).cumsum(0)
    total = int(ends[-1])

    def draw(images: int, generator: torch.Generator) -> Batches:
        if images > total:
            raise SelectorError(
                f"{images} images cannot be drawn from batches that hold {total}; pass more "
                "images, or lower images and scoring_images"
            )
        chosen = torch.randperm(total, generator=generator)[:images].sort().values
        places = torch.bucketize(chosen, ends, right=True)
        rows = {
            number: [int(row) - int(ends[number]) + sizes[number] for row, _ in pairs]
            for number, pairs in groupby(
                zip(chosen.tolist(), places.tolist(), strict=True), key=lambda pair: int(pair[1])
            )
        }
        parts = [_rows(batch, rows[n]) for n, batch in enumerate(batches) if n in rows]
        return list(_joined(parts, max(sizes)))

    return draw


def _rows(batch: object, index: list[int]) -> object:
    def pick(leaf: object) -> object:
        return leaf[index] if isinstance(leaf, Tensor) and leaf.ndim else leaf

    found: object = pytree.tree_map(pick, tuple(batch))  # type: ignore[arg-type]
    return found


def _joined(parts: list[object], most: int) -> Iterator[tuple[object, object]]:
    """Neighbouring parts as batches of at most so many images."""
    held: list[object] = []
    images = 0
    for part in parts:
        size = batch_size(part)
        if held and images + size > most:
            yield _cat(held)
            held, images = [], 0
        held.append(part)
        images += size
    yield _cat(held)


def _cat(parts: list[object]) -> tuple[object, object]:
    def join(*leaves: object) -> object:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
        return torch.cat(tensors) if tensors else leaves[0]

    inputs, targets = pytree.tree_map(join, *parts) if len(parts) > 1 else parts[0]  # type: ignore[misc]
    return inputs, targets
