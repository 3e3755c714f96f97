"""Random samples of images from a user's batches."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice

import torch
from torch import Tensor

from selector.data.batches import Batches, batch_size, check_batches, one_an_image, picked
from selector.errors import SelectorError

Draw = Callable[[int, torch.Generator], Batches]
"""`draw(images, generator)`: re-iterable batches of `images` images, none of them twice."""

Batch = tuple[object, object]


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
    sizes = [batch_size(*batch) for batch in batches]
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
        parts = [
            _Part(batch, rows[number], sizes[number])
            for number, batch in enumerate(batches)
            if number in rows
        ]
        return list(_joined(parts, max(sizes)))

    return draw


def split_images(batches: Batches, count: int) -> tuple[list[Batch], Batches]:
    """Some of the images, half of them at most, and the others: two parts that do not overlap.

    The first are whole batches, until there are so many images; a first batch with more is cut.
    Of the batches, no more are read than tell how many that is.

    Args:
        batches: Re-iterable of (inputs, targets), the same images on every reading.
        count: How many images the first part has, at least, where it may.
    """
    seen: list[Batch] = []
    ends = [0]
    for inputs, targets in batches:
        seen.append((inputs, targets))
        ends.append(ends[-1] + batch_size(inputs, targets))
        if ends[-1] >= 2 * count:
            break
    wanted = max(1, min(count, ends[-1] // 2))
    if ends[1] > wanted:
        inputs, targets = seen[0]
        one, other = (
            (picked(inputs, part, ends[1]), picked(targets, part, ends[1]))
            for part in (slice(wanted), slice(wanted, None))
        )
        return [one], _Later(batches, 1, [other])
    whole = bisect_left(ends, wanted)
    return seen[:whole], _Later(batches, whole, [])


@dataclass(frozen=True, eq=False)
class _Later:
    """The batches after the first ones."""

    batches: Batches
    left_out: int
    before: Sequence[Batch]
    """What comes in their place."""

    def __iter__(self) -> Iterator[Batch]:
        return chain(self.before, islice(iter(self.batches), self.left_out, None))


@dataclass(frozen=True, eq=False)
class _Part:
    """Some images of a batch."""

    whole: Batch
    chosen: list[int]
    images: int
    """Of the whole batch."""

    def values(self) -> Batch:
        inputs, targets = self.whole
        images = self.images
        return picked(inputs, self.chosen, images), picked(targets, self.chosen, images)


def _joined(parts: list[_Part], most: int) -> Iterator[Batch]:
    """Neighbouring parts as batches of at most `most` images."""
    held: list[_Part] = []
    for part in parts:
        if held and len(part.chosen) + sum(len(one.chosen) for one in held) > most:
            yield _cat(held)
            held = []
        held.append(part)
    yield _cat(held)


def _cat(parts: list[_Part]) -> Batch:
    values = [part.values() for part in parts]
    if len(parts) == 1:
        return values[0]
    whole, images = parts[0].whole, parts[0].images
    inputs, targets = (
        _together(whole[place], [value[place] for value in values], images) for place in (0, 1)
    )
    return inputs, targets


def _together(whole: object, values: list[object], images: int) -> object:
    """One structure of several: what comes one an image is joined, the rest is the first one's.

    Args:
        whole: As it was in the first batch, which shows what comes one an image.
        values: What was chosen of each batch.
        images: Images of the first batch.
    """
    if isinstance(whole, Tensor):
        tensors = [value for value in values if isinstance(value, Tensor)]
        return torch.cat(tensors) if whole.ndim and len(whole) == images else tensors[0]
    if isinstance(whole, Mapping):
        mappings = [value for value in values if isinstance(value, Mapping)]
        return {n: _together(whole[n], [m[n] for m in mappings], images) for n in whole}
    if isinstance(whole, tuple | list):
        lists = [value for value in values if isinstance(value, tuple | list)]
        if one_an_image(whole, images):
            joined = [one for some in lists for one in some]
        else:
            columns = zip(whole, zip(*lists, strict=True), strict=True)
            joined = [_together(part, list(column), images) for part, column in columns]
        return tuple(joined) if isinstance(whole, tuple) else joined
    return values[0]
