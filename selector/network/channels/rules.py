"""How operators move, join and read channels: one rule for each kind of operator."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from selector.network.channels.ledger import Ledger, merging, pairs_of
from selector.network.channels.planes import (
    Value,
    aligned,
    compacted,
    joined,
    stretched,
    varying,
)

Rule = Callable[["Ledger", Any, Sequence[Any], dict[str, Any], Any, Callable[[object], Value]], Any]
"""(ledger, operator, arguments, named ones, output, value of a tensor) -> value of the output."""

CONSTANT = "its channels meet the network's input, or a constant of fixed width"
NUMBERED = "its channels are picked by their numbers"


def combined(ledger: Ledger, values: Sequence[tuple[Value, Sequence[int]]], shape: Any) -> Value:
    """The value of an operator that works element by element, by those of tensors and shapes."""
    found: Value | None = None
    own: tuple[int, ...] = ()
    for value, size in values:
        own_shape = (1,) * (len(shape) - len(size)) + tuple(size)
        if found is None:
            found, own = value, own_shape
            continue
        found = _pair(ledger, found, own, value, own_shape)
        own = tuple(
            max(a, b) if 0 not in (a, b) else 0 for a, b in zip(own, own_shape, strict=True)
        )
    if found is None:
        return Value(adapts=True)
    planes = tuple(stretched(aligned(p, len(shape)), shape) for p in found.planes)
    return Value(compacted(planes), found.weight, found.adapts)


def _pair(
    ledger: Ledger, a: Value, a_shape: Sequence[int], b: Value, b_shape: Sequence[int]
) -> Value:
    ones = [aligned(plane, len(a_shape)) for plane in a.planes]
    others = [aligned(plane, len(b_shape)) for plane in b.planes]
    kept = []
    for one in ones:
        match = next((p for p in others if set(varying(p)) & set(varying(one))), None)
        if match is None:
            if _meets(one, b, b_shape):
                ledger.fix(one, CONSTANT)
            else:
                kept.append(one)
            continue
        others = [plane for plane in others if plane is not match]
        kept.append(_matched(ledger, one, match))
    for other in others:
        if _meets(other, a, a_shape):
            ledger.fix(other, CONSTANT)
        else:
            kept.append(other)
    weight = all(value.weight or value.adapts for value in (a, b))
    return Value(tuple(kept), weight, a.adapts and b.adapts)


def _meets(plane: Tensor, other: Value, shape: Sequence[int]) -> bool:
    """Whether the other tensor has a width of its own where labels of the plane vary."""
    return not other.adapts and any(shape[d] > 1 for d in varying(plane))


def _matched(ledger: Ledger, one: Tensor, other: Tensor) -> Tensor:
    """Tie two planes; the one that varies along more dimensions goes on."""
    more, less = (one, other) if len(varying(one)) >= len(varying(other)) else (other, one)
    beyond = [d for d in varying(more) if d not in varying(less)]
    if beyond and not [d for d in beyond if less.shape[d] > 1]:
        # Several labels share one of the other plane: it goes with all of them, or stays.
        inside = [d for d in varying(more) if d in varying(less)]
        ledger.choose(pairs_of(more, less), merging(more, inside))
    else:
        ledger.tie(more, less)
    return more


def moved(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Any:
    """Operators that move elements of one tensor: the same operator moves its labels."""
    first = value(args[0])
    several = isinstance(out, list | tuple)
    results: list[Any] = []
    for plane in first.planes:
        found = _run(func, plane, args[1:], kwargs)
        results.append(found if several else [found])
    count = len(out) if several else 1
    values = [
        Value(compacted([found[i] for found in results]), first.weight, first.adapts)
        for i in range(count)
    ]
    return values if several else values[0]


def _run(func: Any, plane: Tensor, rest: Any, kwargs: Any) -> Any:
    try:
        return func(plane, *rest, **kwargs)
    except RuntimeError:  # A view that the labels' strides do not allow.
        return plane.reshape(rest[0])


def viewed(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """Reshapes: a dimension of channels may be taken apart; all but one part keep their size."""
    found: Value = moved(ledger, torch.Tensor.reshape, (args[0], tuple(out.shape)), {}, out, value)
    before = value(args[0]).planes
    for plane in found.planes:
        dims = varying(plane)
        if len(dims) > 1 and len(dims) > max((len(varying(p)) for p in before), default=0):
            ledger.choose(*(merging(plane, [o for o in dims if o != d]) for d in reversed(dims)))
    return found


def same(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """Operators whose output has the shape of their first argument."""
    found: Value = value(args[0])
    return found


def restrided(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """Another memory layout of the same tensor; nothing else that strides may mean."""
    if out.shape != args[0].shape:
        raise ValueError("a view by strides")
    found: Value = value(args[0])
    return found


def cat(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """Concatenation; of tensors without channels the positions are fixed."""
    dimension = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % max(1, out.ndim)
    tensors = [t for t in args[0] if t.ndim == out.ndim]
    if func._overloadpacket is torch.ops.aten.stack:
        tensors = list(args[0])
    values = [value(t) for t in tensors]
    stacked = func._overloadpacket is torch.ops.aten.stack
    shapes = [t.unsqueeze(dimension).shape if stacked else t.shape for t in tensors]
    loose = [[p.unsqueeze(dimension) if stacked else p for p in v.planes] for v in values]
    planes = []
    while any(loose):
        parts = _next_parts(ledger, loose, values, shapes, dimension)
        if parts is not None:
            planes.append(joined(parts, dimension))
    return Value(compacted(planes), all(v.weight for v in values), all(v.adapts for v in values))


def _next_parts(
    ledger: Ledger,
    loose: list[list[Tensor]],
    values: Sequence[Value],
    shapes: Sequence[Any],
    dimension: int,
) -> list[Tensor] | None:
    """Planes of all parts that vary in the same way, taken from those that are left."""
    first = next(plane for some in loose for plane in some)
    dims = set(varying(first))
    parts: list[Tensor] = []
    for some, value, shape in zip(loose, values, shapes, strict=True):
        match = next((p for p in some if set(varying(p)) & dims or p is first), None)
        if match is None:
            others = [d for d in dims if d != dimension and shape[d] > 1]
            if others and not value.adapts:
                ledger.fix(first, CONSTANT)
            parts.append(torch.zeros((), dtype=torch.long).expand(*shape))
        else:
            del some[next(i for i, p in enumerate(some) if p is match)]
            parts.append(match)
    across = [p for p in parts if set(varying(p)) - {dimension}]
    if dims - {dimension}:
        # Along all other dimensions the parts have one width.
        if dimension not in dims:
            for other in across[1:]:
                one, two = (p.narrow(dimension, 0, 1) for p in (across[0], other))
                ledger.tie(one, two)
            shape = list(parts[0].shape)
            shape[dimension] = sum(p.shape[dimension] for p in parts)
            return [stretched(across[0], shape)]
    return parts
