"""Places of channels that are no side of a layer: bare tensors, and sizes that modules keep.

Their side is written as a name. `gamma[0]` is dimension 0 of a module's parameter or buffer
`gamma`; `.num_heads` is a number that a module keeps of its channels, `.splits[1]` one in a list or
tuple of them; `kept[0, -1]` is dimension -1 of the first tensor that a module is called with, where
statistics over the channels are taken: nothing is cut there. It is `read[0, -1]` where the module
does not give the channels back.
"""

import re
from collections.abc import Sequence
from typing import Any, TypeGuard, cast

from torch import Tensor, nn

from selector.network.attention import is_packed_attention

MOST_SIZES = 16
"""Longer lists of numbers are no sizes."""
_TENSOR = re.compile(r"(\w+)\[(\d+)\]")
_NUMBER = re.compile(r"\.(\w+)(?:\[(\d+)\])?")
_KEPT = re.compile(r"(kept|read)\[(\d+), (-?\d+)\]")


def is_side(side: str) -> bool:
    """Whether this names a place of channels that can be cut."""
    return not is_bare(side) or bool(tensor_place(side)) or is_number(side)


def is_bare(side: str) -> bool:
    """Whether a side is none of a layer's inputs and outputs."""
    return side not in ("in", "out", "both")


def kept_side(argument: int, dimension: int, *, given_back: bool) -> str:
    """The side that stands for a dimension of a tensor that a module is called with."""
    return f"{'kept' if given_back else 'read'}[{argument}, {dimension}]"


def kept_place(side: str) -> tuple[int, int] | None:
    """Argument and dimension of such a side; None of every other."""
    found = _KEPT.fullmatch(side)
    return None if found is None else (int(found[2]), int(found[3]))


def is_given_back(side: str) -> bool:
    """Whether the module of such a side has these channels in its outputs, too."""
    return side.startswith("kept")


def tensor_place(side: str) -> tuple[str, int] | None:
    """Name and dimension of a bare tensor's side; None of every other."""
    found = _TENSOR.fullmatch(side)
    return None if found is None else (found[1], int(found[2]))


def is_number(side: str) -> bool:
    """Whether a side names a number that a module keeps."""
    return _NUMBER.fullmatch(side) is not None


def _number(module: nn.Module, side: str) -> int | None:
    """The number that a module keeps under this name; None where there is none."""
    found = _NUMBER.fullmatch(side)
    value = None if found is None else getattr(module, found[1], None)
    if found is not None and found[2] is not None:
        place = int(found[2])
        value = value[place] if _is_sizes(value) and place < len(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def set_number(module: nn.Module, side: str, value: int) -> None:
    """Change a number that a module keeps; of a list or tuple, in a copy of it."""
    found = _NUMBER.fullmatch(side)
    assert found is not None
    name, place = found[1], found[2]
    if place is None:
        setattr(module, name, value)
    else:
        sizes = getattr(module, name)
        changed = [value if i == int(place) else size for i, size in enumerate(sizes)]
        setattr(module, name, type(sizes)(changed))


def _is_sizes(value: object) -> TypeGuard[list[int] | tuple[int, ...]]:
    """Whether this is a list or tuple of sizes, and of a kind that can be made anew."""
    return (
        type(value) in (list, tuple)
        and 1 < len(cast(Sequence[object], value)) <= MOST_SIZES
        and all(isinstance(n, int) and not isinstance(n, bool) for n in cast(Any, value))
    )


def bare_width(module: nn.Module, side: str) -> int | None:
    """How many positions there are; None where the module has no such tensor or number."""
    place = tensor_place(side)
    if place is not None:
        value = getattr(module, place[0], None)
        if isinstance(value, Tensor) and place[1] < value.ndim:
            return value.shape[place[1]]
        return None
    return _number(module, side)


def numbers_of(module: nn.Module) -> dict[str, int]:
    """The numbers that a module keeps and that may be widths, by side."""
    if is_packed_attention(module):
        return {".num_heads": module.num_heads}  # Nothing reads the others once it is cut.
    return {
        f".{name}": value
        for name, value in vars(module).items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 1
    }


def sizes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The lists and tuples of numbers that a module keeps, by attribute."""
    return {name: tuple(value) for name, value in vars(module).items() if _is_sizes(value)}


def note_width(module: nn.Module, side: str, left: int) -> None:
    """Note that a cut has left so many positions of a side: nothing else tells it later."""
    # Not in place: whoever restores the attributes of a module restores this one.
    vars(module)[_CUT] = {**cut_widths(module), side: left}


def cut_widths(module: nn.Module) -> dict[str, int]:
    """Sides that cuts have changed, with the number of positions that are left."""
    found: dict[str, int] = vars(module).get(_CUT, {})
    return found


_CUT = "_selector_widths"
