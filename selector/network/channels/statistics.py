"""Rules of operators that take statistics: normalisation, means, maxima, softmax, pooling."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selector.network.channels.ledger import Ledger, Mixing, merging
from selector.network.channels.planes import Value, compacted, stretched, varying, vector
from selector.network.channels.rules import combined

BLURRED = "neighbouring channels are mixed"


def mix(ledger: Ledger, plane: Tensor, dimensions: Sequence[int], what: str) -> Tensor | None:
    """A statistic over some dimensions; the plane of its result, of size one along them.

    Where channels of several rows are summed row by row (the width of each attention head), those
    of a row go together. Over all channels there are none left in the result.
    """
    inside = [d for d in dimensions if d in varying(plane)]
    if not inside:
        left = plane
    else:
        pairs = merging(plane, inside)
        if len(inside) < len(varying(plane)):
            ledger.pairs.append(pairs)
        else:
            ledger.mixings.append(Mixing(pairs[0], pairs, ledger.calls, what))
        left = plane
    for d in dimensions:
        left = left.narrow(d, 0, 1)
    return left if varying(left) else None


def reduced(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Any:
    """Sums, means, maxima, norms, variances over some dimensions, or all."""
    first = out[0] if isinstance(out, list | tuple) else out
    found, inputs = value(args[0]), args[0]
    dims = _dimensions(func, args, kwargs)
    keep = first.ndim == inputs.ndim
    planes = []
    for plane in found.planes:
        left = mix(ledger, plane, dims, func._overloadpacket.__name__)
        if left is not None:
            for d in sorted(dims, reverse=True) if not keep else ():
                left = left.squeeze(d)
            planes.append(stretched(left, first.shape))
    result = Value(compacted(planes), found.weight, found.adapts)
    return [result, *[Value() for _ in out[1:]]] if isinstance(out, list | tuple) else result


def _dimensions(func: Any, args: Any, kwargs: Any) -> list[int]:
    names = [argument.name for argument in func._schema.arguments]
    place = names.index("dim") if "dim" in names else len(args)
    given = args[place] if place < len(args) else kwargs.get("dim")
    if given is None or given == []:
        return list(range(args[0].ndim))
    return sorted(d % args[0].ndim for d in (given if isinstance(given, list | tuple) else [given]))


def spread(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Any:
    """Softmax, cumulative sums: a statistic over one dimension that keeps the shape."""
    names = [argument.name for argument in func._schema.arguments]
    place = names.index("dim") if "dim" in names else 1
    dimension = int(args[place] if place < len(args) else kwargs.get("dim", -1)) % args[0].ndim
    for plane in value(args[0]).planes:
        if dimension in varying(plane):
            ledger.pairs.append(merging(plane, [dimension]))
            ledger.note(plane, f"{func._overloadpacket.__name__.strip('_')} over all of them")
    several = isinstance(out, list | tuple)
    return [value(args[0]) for _ in out] if several else value(args[0])


def batch_norm(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Any:
    """Channel by channel, with a scale, a shift and statistics for each.

    Where the statistics are taken now, they are taken over all else that the tensor has: a weight
    may be standardised so over its inputs.
    """
    inputs = args[0]
    shape = [1] * inputs.ndim
    if _takes_statistics(func, args):
        for plane in value(inputs).planes:
            mix(ledger, plane, [d for d in range(inputs.ndim) if d != 1], "standardisation")
    terms = [(value(inputs), inputs.shape)]
    for tensor in args[1:5]:
        if isinstance(tensor, Tensor) and tensor.ndim == 1:
            view = [*shape]
            view[1] = len(tensor)
            planes = tuple(plane.view(view) for plane in value(tensor).planes)
            terms.append((Value(planes, value(tensor).weight), view))
    return [combined(ledger, terms, inputs.shape), *[Value() for _ in out[1:]]]


def _takes_statistics(func: Any, args: Any) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    return "training" in names and bool(args[names.index("training")])


def layer_norm(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Any:
    """Statistics over the last dimensions; scale and shift go with the channels."""
    inputs, normalised = args[0], len(args[1])
    first = inputs.ndim - normalised
    for plane in value(inputs).planes:
        mix(ledger, plane, range(first, inputs.ndim), "normalisation")
    tensors = [inputs, *[t for t in args[2:4] if isinstance(t, Tensor)]]
    terms = [(value(tensor), tensor.shape) for tensor in tensors]
    return [combined(ledger, terms, inputs.shape), *[Value() for _ in out[1:]]]


def group_norm(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Any:
    """Statistics over blocks of channels, which keep one size."""
    inputs, blocks = args[0], int(args[6])
    for plane in value(inputs).planes:
        if 1 in varying(plane) and blocks < inputs.shape[1]:
            labels = plane.movedim(1, 0).reshape(inputs.shape[1], -1)[:, 0]
            rows = labels.view(blocks, -1)
            if blocks > 1:
                ledger.pairs.append(merging(rows, [0]))
            mix(ledger, labels, [0], "normalisation")
    view = [1, inputs.shape[1]] + [1] * (inputs.ndim - 2)
    terms = [(value(inputs), inputs.shape)]
    for tensor in args[1:3]:
        if isinstance(tensor, Tensor):
            planes = tuple(plane.view(view) for plane in value(tensor).planes)
            terms.append((Value(planes, value(tensor).weight), view))
    return [combined(ledger, terms, inputs.shape), *[Value() for _ in out[1:]]]


def spatial(dimensions: int) -> Any:
    """The rule of operators that work on the last dimensions, on every channel alike."""

    def rule(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Any:
        several = isinstance(out, list | tuple)
        first = out[0] if several else out
        planes = []
        for plane in value(args[0]).planes:
            if any(d >= plane.ndim - dimensions for d in varying(plane)):
                ledger.fix(plane, BLURRED)
                continue
            planes.append(stretched(plane, first.shape))
        result = Value(compacted(planes))
        return [result, *[Value() for _ in out[1:]]] if several else result

    return rule


def embedding(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """Rows of a table: its columns are channels."""
    planes = []
    for plane in value(args[0]).planes:
        if varying(plane) == (1,):
            columns = plane[0]
            planes.append(columns.view(*[1] * (out.ndim - 1), -1).expand(out.shape))
    return Value(compacted(planes))


def refolded(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """Columns put back as overlapping patches: the rows of a channel go together."""
    kernel = int(torch.tensor(args[2]).prod())
    planes = []
    for plane in value(args[0]).planes:
        where = plane.ndim - 2
        if varying(plane) != (where,):
            ledger.fix(plane, BLURRED)
            continue
        rows = plane.movedim(where, 0).reshape(plane.shape[where], -1)[:, 0].view(-1, kernel)
        ledger.pairs.append(merging(rows, [1]))
        planes.append(vector(rows[:, 0], out.shape, out.ndim - 3))
    return Value(compacted(planes))


def unfolded(ledger: Ledger, func: Any, args: Any, kwargs: Any, out: Any, value: Any) -> Value:
    """Patches laid out as columns: each channel has one row for every place in the kernel."""
    kernel = int(torch.tensor(args[1]).prod())
    planes = []
    for plane in value(args[0]).planes:
        if varying(plane) != (1,):
            ledger.fix(plane, BLURRED)
            continue
        labels = plane.movedim(1, 0).reshape(plane.shape[1], -1)[:, 0].repeat_interleave(kernel)
        planes.append(labels.view(1, -1, 1).expand(out.shape))
    return Value(compacted(planes))
