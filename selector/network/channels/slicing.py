"""Rules of operators that take a part of a tensor, or add to it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selector.network.channels.ledger import Ledger, merging, pairs_of
from selector.network.channels.planes import (
    Value,
    compact,
    compacted,
    joined,
    stretched,
    varying,
    vector,
)
from selector.network.channels.rules import NUMBERED, combined, moved

CUT_OUT = "its channels are taken apart at fixed numbers"


def split(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Any:
    """Parts of a dimension: equal parts stay equal, so the same offset goes from each.

    Where the module keeps the parts' sizes in a list, they can follow, each for itself.
    """
    dimension = _dimension(func, args, kwargs, 2)
    for plane in value(args[0]).planes:
        if dimension in varying(plane):
            parts = list(func(plane, *args[1:], **kwargs))
            if isinstance(args[1], list | tuple) and ledger.part(parts, dimension, args[1]):
                continue
            for part in parts[1:]:
                if part.shape == parts[0].shape:
                    _tie_slices(ledger, parts[0], part)
    return moved(ledger, func, args, kwargs, out, value)


def _tie_slices(ledger: Ledger, one: Tensor, other: Tensor) -> None:
    """Slices of one tensor: either their bounds follow its width, or all of it stays."""
    pairs = pairs_of(one, other)
    ledger.literal.append((pairs, pairs.reshape(-1)))


def _dimension(func: Any, args: Any, kwargs: Any, place: int) -> int:
    given = args[place] if len(args) > place else kwargs.get("dim", 0)
    return int(given % args[0].ndim)


def select(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Any:
    """One position, or each, of a dimension, which keeps its size."""
    dimension = _dimension(func, args, kwargs, 1)
    for plane in value(args[0]).planes:
        dims = varying(plane)
        if dims == (dimension,):
            ledger.fix(plane, NUMBERED)
        elif dimension in dims:
            ledger.pairs.append(merging(plane, [dimension]))
    return moved(ledger, func, args, kwargs, out, value)


def slices(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Any:
    """A range of a dimension.

    Where the ranges that a network takes have one size, that size may follow the width. Otherwise
    the bounds are numbers: what lies below the last of them stays.
    """
    dimension = _dimension(func, args, kwargs, 1)
    width = args[0].shape[dimension]
    start = (args[2] if len(args) > 2 else None) or 0
    end = args[3] if len(args) > 3 and args[3] is not None else width
    step = args[4] if len(args) > 4 else 1
    start, end = (max(0, b + width) if b < 0 else min(b, width) for b in (start, end))
    size = end - start
    for plane in value(args[0]).planes:
        if dimension not in varying(plane) or (size == width and step == 1):
            continue
        if step != 1:
            ledger.fix(plane, CUT_OUT)
            continue
        bound = end if end < width else start
        stays = plane.narrow(dimension, 0, bound).reshape(-1)
        if size and width % size == 0 and start % size == 0:
            parts = plane.split(size, dimension)
            pairs = torch.cat([pairs_of(parts[0], part) for part in parts[1:]], 1)
            ledger.literal.append((pairs, stays))
        else:
            ledger.literal.append((torch.zeros(2, 0, dtype=torch.long), stays))
    return moved(ledger, func, args, kwargs, out, value)


def pad(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """Padding: of channels, with positions that are fixed; elsewhere nothing changes."""
    found, amounts = value(args[0]), args[1]
    planes = []
    for plane in found.planes:
        dims = varying(plane)
        for d in range(plane.ndim):
            place = 2 * (plane.ndim - 1 - d)
            before, after = amounts[place : place + 2] if place < len(amounts) else (0, 0)
            if d in dims and (before or after):
                keep = max(0, -before), plane.shape[d] - max(0, -after)
                if before < 0 or after < 0:
                    ledger.fix(plane, CUT_OUT)
                    plane = plane.narrow(d, keep[0], keep[1] - keep[0])
                plane = _padded(plane, d, max(0, before), max(0, after))
        planes.append(stretched(plane, out.shape))
    return Value(compacted(planes), found.weight, found.adapts)


def _padded(plane: Tensor, d: int, before: int, after: int) -> Tensor:
    zero = torch.zeros((), dtype=torch.long)
    shapes = [[*plane.shape[:d], n, *plane.shape[d + 1 :]] for n in (before, after)]
    parts = [zero.expand(shapes[0]), plane, zero.expand(shapes[1])]
    return joined([part for part in parts if part.shape[d]], d)


def picked(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Any:
    """Positions given by numbers: dimensions of channels keep theirs."""
    found = value(args[0])
    planes = []
    for plane in found.planes:
        indexed = _indexed(func, args, plane.ndim)
        if set(varying(plane)) & set(indexed):
            if func._overloadpacket is torch.ops.aten.flip:
                planes.append(func(plane, *args[1:], **kwargs))
                continue
            ledger.fix(plane, NUMBERED)
        moved_plane = compact(func(plane, *args[1:], **kwargs))
        if moved_plane is not None:
            planes.append(moved_plane)
    return Value(compacted(planes), found.weight, found.adapts)


def placed(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """Values written at positions given by numbers or a mask, as those of masked tokens."""
    whole, indices, values = args[:3]
    if any(index is None for index in indices):
        raise ValueError("what is written does not line up with the last dimensions")
    indexed = set(_by_index(indices))
    behind = whole.ndim - len(indexed)
    for plane in value(whole).planes:
        if indexed.intersection(varying(plane)):
            ledger.fix(plane, NUMBERED)
    written = value(values)
    beyond = max(0, values.ndim - behind)
    for plane in written.planes:
        if min(varying(plane)) < beyond:
            ledger.fix(plane, NUMBERED)
    planes = tuple(p[(0,) * beyond] for p in written.planes if min(varying(p)) >= beyond)
    terms = [
        (value(whole), whole.shape),
        (Value(planes, written.weight, written.adapts), values.shape[beyond:]),
    ]
    return combined(ledger, terms, out.shape)


def _by_index(indices: Sequence[Tensor | None]) -> list[int]:
    """The dimensions that are picked by numbers or masks."""
    found: list[int] = []
    d = 0
    for index in indices:
        found += [] if index is None else range(d, d + _width(index))
        d += 1 if index is None else _width(index)
    return found


def _indexed(func: Any, args: Any, dimensions: int) -> Sequence[int]:
    """The dimensions along which an operator picks."""
    name = func._overloadpacket.__name__
    if name == "index":
        return _by_index(args[1])
    if name in ("roll", "flip"):
        dims = args[2] if name == "roll" else args[1]
        return [d % dimensions for d in (dims if isinstance(dims, list | tuple) else [dims])]
    return [args[1] % dimensions]


def _width(index: Tensor) -> int:
    return index.ndim if index.dtype in (torch.bool, torch.uint8) else 1


def shuffled(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """Channel shuffle and pixel shuffle: blocks of channels keep their number or their size."""
    name, count = func._overloadpacket.__name__, int(args[1])
    planes = []
    for plane in value(args[0]).planes:
        where = {"channel_shuffle": 1}.get(name, plane.ndim - 3)
        if varying(plane) != (where,):
            ledger.fix(plane, NUMBERED)
            continue
        labels = plane.movedim(where, 0).reshape(plane.shape[where], -1)[:, 0]
        if name == "channel_shuffle":
            blocks = labels.view(count, -1)
            ledger.choose(merging(blocks, [0]), merging(blocks, [1]))
            labels = blocks.t().reshape(-1)
        elif name == "pixel_shuffle":
            blocks = labels.view(-1, count * count)
            ledger.pairs.append(merging(blocks, [1]))
            labels = blocks[:, 0]
        else:
            labels = labels.repeat_interleave(count * count)
        planes.append(vector(labels, out.shape, where))
    return Value(compacted(planes))


def glu(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """Halves of a dimension, the one gated by the other."""
    dimension = (args[1] if len(args) > 1 else -1) % out.ndim
    planes = []
    for plane in value(args[0]).planes:
        if dimension in varying(plane):
            one, other = plane.chunk(2, dimension)
            ledger.tie(one, other)
            plane = one
        planes.append(stretched(plane, out.shape))
    return Value(compacted(planes))
