"""Places of channels that are no side of a layer: bare tensors, and sizes that modules keep.

Their side is written as a name. `gamma[0]` is dimension 0 of a module's parameter or buffer
`gamma`; `.num_heads` is a number that a module keeps of its channels; `kept[0, -1]` is dimension -1
of the first tensor that a module is called with, where statistics over the channels are taken:
nothing is cut there.
"""

import re

from torch import Tensor, nn

from selector.network.attention import is_packed_attention

_TENSOR = re.compile(r"(\w+)\[(\d+)\]")
_KEPT = re.compile(r"kept\[(\d+), (-?\d+)\]")


def is_side(side: str) -> bool:
    """Whether this names a place of channels that can be cut."""
    return not is_bare(side) or bool(tensor_place(side)) or number_name(side) is not None


def is_bare(side: str) -> bool:
    """Whether a side is none of a layer's inputs and outputs."""
    return side not in ("in", "out", "both")


def kept_side(argument: int, dimension: int) -> str:
    """The side that stands for a dimension of a tensor that a module is called with."""
    return f"kept[{argument}, {dimension}]"


def kept_place(side: str) -> tuple[int, int] | None:
    """Argument and dimension of such a side; None of every other."""
    found = _KEPT.fullmatch(side)
    return None if found is None else (int(found[1]), int(found[2]))


def tensor_place(side: str) -> tuple[str, int] | None:
    """Name and dimension of a bare tensor's side; None of every other."""
    found = _TENSOR.fullmatch(side)
    return None if found is None else (found[1], int(found[2]))


def number_name(side: str) -> str | None:
    """The attribute of a number's side; None of every other."""
    return side[1:] if side[:1] == "." and side[1:].isidentifier() else None


def bare_width(module: nn.Module, side: str) -> int | None:
    """How many positions there are; None where the module has no such tensor or number."""
    place = tensor_place(side)
    if place is not None:
        value = getattr(module, place[0], None)
        if isinstance(value, Tensor) and place[1] < value.ndim:
            return value.shape[place[1]]
        return None
    value = getattr(module, number_name(side) or "", None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def numbers_of(module: nn.Module) -> dict[str, int]:
    """The numbers that a module keeps and that may be widths."""
    if is_packed_attention(module):
        return {"num_heads": module.num_heads}  # Nothing reads the others once it is cut.
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 1
    }


def note_width(module: nn.Module, side: str, left: int) -> None:
    """Note that a cut has left so many positions of a side: nothing else tells it later."""
    # Not in place: whoever restores the attributes of a module restores this one.
    vars(module)[_CUT] = {**cut_widths(module), side: left}


def cut_widths(module: nn.Module) -> dict[str, int]:
    """Sides that cuts have changed, with the number of positions that are left."""
    found: dict[str, int] = vars(module).get(_CUT, {})
    return found


_CUT = "_selector_widths"
