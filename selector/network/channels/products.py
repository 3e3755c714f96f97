"""Rules of convolutions, matrix products and attention: what reads channels and makes new ones."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from selector.network.channels.ledger import Ledger, merging
from selector.network.channels.planes import Value, compacted, stretched, varying, vector
from selector.network.channels.rules import combined

READS_FIXED = "it reads what cannot be removed"
BLOCKS = "the blocks of a grouped convolution keep one size"


def along(planes: tuple[Tensor, ...], dimension: int) -> Tensor | None:
    """The plane that varies along a dimension."""
    return next((plane for plane in planes if dimension in varying(plane)), None)


def _line(ledger: Ledger, plane: Tensor, dimension: int) -> Tensor:
    """Labels along one dimension; what varies along others goes together."""
    others = [d for d in varying(plane) if d != dimension]
    if others:
        ledger.pairs.append(merging(plane, others))
    return plane.movedim(dimension, 0).reshape(plane.shape[dimension], -1)[:, 0]


def convolution(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """Inputs are tied to the weight's inputs; its outputs are new channels."""
    inputs, weight, bias = args[:3]
    transposed, groups = bool(args[6]), int(args[8])
    kernel = value(weight)
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    read, width = along(value(inputs).planes, 1), inputs.shape[1]
    given = torch.zeros(width, dtype=torch.long) if read is None else _line(ledger, read, 1)
    made = _rows(ledger, kernel, weight, out_dim, out.shape[1], groups if transposed else 1)
    if made is None:
        ledger.fix(given, "the weight that reads it is no parameter")
        return Value()
    _read(ledger, given, made, kernel, weight, in_dim, groups, transposed)
    if bias is not None and (own := along(value(bias).planes, 0)) is not None:
        ledger.tie(made, own)
    return Value(compacted([vector(made, out.shape, 1)]), kernel.weight and value(inputs).weight)


def _rows(
    ledger: Ledger, kernel: Value, weight: Tensor, dimension: int, width: int, blocks: int
) -> Tensor | None:
    """Labels of the outputs; of a transposed convolution all blocks share the weight's."""
    plane = along(kernel.planes, dimension)
    if plane is None:
        return None if weight.shape[dimension] > 1 else torch.zeros(width, dtype=torch.long)
    return _line(ledger, plane, dimension).repeat(blocks)


def _read(
    ledger: Ledger,
    given: Tensor,
    made: Tensor,
    kernel: Value,
    weight: Tensor,
    dimension: int,
    groups: int,
    transposed: bool,
) -> None:
    """Tie inputs to the weight; the blocks of a grouped one lose the same offsets."""
    plane = along(kernel.planes, dimension)
    if groups == len(given) == len(made):
        ledger.tie(given, made, READS_FIXED)
        if transposed and plane is not None:
            ledger.tie(given, _line(ledger, plane, dimension), READS_FIXED)
        return
    if groups > 1:
        for labels in (given, made):
            blocks = labels.view(groups, -1)
            ledger.note(labels, f"layer {ledger.module!r} has {groups} groups")
            ledger.tie(blocks, blocks[:1].expand_as(blocks), BLOCKS)
    if plane is not None:
        columns = _line(ledger, plane, dimension)
        ledger.tie(given, columns if transposed else columns.repeat(groups), READS_FIXED)
    elif weight.shape[dimension] > 1 or groups == 1:
        ledger.fix(given, READS_FIXED)


def mm(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """A matrix product, with what is added to it."""
    *added, one, other = args[:3] if func._overloadpacket.__name__ == "addmm" else args[:2]
    found = _product(ledger, one, other, out, value)
    if added:
        terms = [(found, out.shape), (value(added[0]), added[0].shape)]
        return combined(ledger, terms, out.shape)
    return found


def bmm(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """Matrix products of a batch."""
    if func._overloadpacket.__name__ == "baddbmm":
        found = _product(ledger, args[1], args[2], out, value)
        return combined(ledger, [(found, out.shape), (value(args[0]), args[0].shape)], out.shape)
    return _product(ledger, args[0], args[1], out, value)


def mv(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """A product with a vector reads everything."""
    for tensor in args[:2]:
        for plane in value(tensor).planes:
            ledger.fix(plane, "a product of vectors reads it")
    return Value()


def _product(ledger: Ledger, one: Tensor, other: Tensor, out: Tensor, value: Any) -> Value:
    """The sum over the last dimension of the one and the last but one of the other."""
    a, b = value(one), value(other)
    k_a, k_b = one.ndim - 1, other.ndim - 2
    reads, read = along(a.planes, k_a), along(b.planes, k_b)
    planes = [p for p in a.planes if p is not reads]
    others = [p for p in b.planes if p is not read]
    if (a.weight or b.weight) and reads is not None and read is not None:
        # A weight reads its inputs position by position.
        ledger.tie(_line(ledger, reads, k_a), _line(ledger, read, k_b), READS_FIXED)
    elif not (a.adapts or b.adapts):
        # Of several rows and columns, those without channels of their own are no matter.
        kept = [
            stretched_to_one(_summed(ledger, p, k))
            for p, k in ((reads, k_a), (read, k_b))
            if p is not None
        ]
        if len(kept) == 2:
            ledger.tie(kept[0], kept[1].transpose(-1, -2))
        elif kept and one.shape[-1] > 1:
            ledger.fix(kept[0], READS_FIXED)
        planes += [p for p in kept[:1] if varying(p)]
    for plane in _without_doubles(ledger, planes, others):
        planes.append(plane)
    found = compacted([stretched(plane, out.shape) for plane in planes])
    return Value(found, a.weight and b.weight)


def _without_doubles(
    ledger: Ledger, planes: list[Tensor], others: list[Tensor]
) -> Iterator[Tensor]:
    """Planes of the second factor; those of one batch dimension as one of the first go with it."""
    for other in others:
        match = next((p for p in planes if set(varying(p)) & set(varying(other))), None)
        if match is None:
            yield other
            continue
        ledger.tie(stretched_to_one(match), stretched_to_one(other))
        if len(varying(other)) > len(varying(match)):
            del planes[next(i for i, p in enumerate(planes) if p is match)]
            yield other


def stretched_to_one(plane: Tensor) -> Tensor:
    """A plane whose matrices have size one where labels do not vary."""
    for d in (-1, -2):
        if plane.ndim + d not in varying(plane):
            plane = plane.narrow(d, 0, 1)
    return plane


def _summed(ledger: Ledger, plane: Tensor, dimension: int) -> Tensor:
    """What is left of a plane after a sum over channels: those go together."""
    ledger.pairs.append(merging(plane, [dimension]))
    return plane.narrow(dimension, 0, 1)


def attention(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Any:
    """Queries, keys and values (..., heads, positions, width): heads go as a whole."""
    tensors = args[:3]
    queries, keys, read = (_of_heads(ledger, value(tensor).planes) for tensor in tensors)
    heads = []
    for tensor, planes in ((tensors[0], queries), (tensors[1], keys)):
        for plane in planes:
            # Queries and keys may come at different positions.
            heads.append(stretched_to_one(_summed(ledger, plane, tensor.ndim - 1)))
    for plane in heads[1:]:
        if plane.shape == heads[0].shape:
            ledger.tie(heads[0], plane)
        else:
            ledger.fix(plane, "groups of heads share it")
            ledger.fix(heads[0], "groups of heads share it")
    for plane in read:
        if heads and plane.shape[-3] == heads[0].shape[-3]:
            ledger.tie(plane.narrow(-2, 0, 1), heads[0].narrow(-2, 0, 1))
    mask = args[3] if len(args) > 3 and isinstance(args[3], Tensor) else kwargs.get("attn_mask")
    if isinstance(mask, Tensor) and heads:
        scores = heads[0].narrow(-2, 0, 1)
        terms = [(Value((scores,)), scores.shape), (value(mask), mask.shape)]
        combined(ledger, terms, (scores + mask).shape)
    found = compacted([stretched(plane, out[0].shape) for plane in read])
    return [Value(found), *[Value() for _ in out[1:]]]


def _of_heads(ledger: Ledger, planes: tuple[Tensor, ...]) -> list[Tensor]:
    """Planes without those of positions, as of learnt tokens, which the softmax runs over."""
    found = []
    for plane in planes:
        if varying(plane) == (plane.ndim - 2,):
            ledger.fix(plane, "attention runs over its positions")
        else:
            found.append(plane)
    return found
