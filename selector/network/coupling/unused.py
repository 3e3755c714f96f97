"""Layers that run in neither mode: whether code could reach them, and hand them a group's channels.

Such a layer belongs to another method or flag. Where its width is that of a group, it may read or
write the group's channels, and the group stays whole.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType

from torch import nn

from selector.network.groups import Group
from selector.network.layers import CONVOLUTION, NORMALISATION, layer_width


def lookalike(model: nn.Module, unused: Sequence[str], group: Group) -> str | None:
    """An unused layer that could read or write a group's channels, by its width and its place.

    It lies in the smallest module that holds all layers of the group: elsewhere that module would
    have to return the channels to code that nothing of the probe batch passes.
    """
    used = [(part.layer, part.side) for part in group.slices if not part.idle]
    inside = _common_owner(model, [name for name, _ in used])
    near = [name for name in unused if not inside or name.startswith(f"{inside}.")]
    if not near:
        return None
    widths = {
        layer_width(layer, side)
        for name, side in used
        if side in ("in", "out", "both") and isinstance(layer := model.get_submodule(name), _SIZED)
    }
    return next((name for name, width in _outer_widths(model, near) if width in widths), None)


_SIZED = CONVOLUTION | nn.Linear | NORMALISATION | nn.PReLU
"""Layers whose widths are known."""


def _common_owner(model: nn.Module, names: Sequence[str]) -> str:
    """The smallest module with code of its own that holds all of these layers; empty for the model.

    Whatever code has a container can call what is in it.
    """
    owners = [name.split(".")[:-1] for name in names]
    shared = 0
    while all(len(owner) > shared and owner[shared] == owners[0][shared] for owner in owners):
        shared += 1
    while shared and isinstance(model.get_submodule(".".join(owners[0][:shared])), CONTAINERS):
        shared -= 1
    return ".".join(owners[0][:shared])


CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules whose parts other code may call one by one."""


def _outer_widths(model: nn.Module, unused: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Unused layers with the widths at which they meet the rest of the network.

    Inside an unused `nn.Sequential` only the first layer reads from outside, and only the last
    writes to it.
    """
    layers = {
        name: layer for name in unused if isinstance(layer := model.get_submodule(name), _SIZED)
    }
    for name, layer in layers.items():
        before, after = _neighbours(model, name, layers)
        if not before:
            yield name, layer_width(layer, "in")
        if not after:
            yield name, layer_width(layer, "out")


def _neighbours(model: nn.Module, name: str, layers: Mapping[str, nn.Module]) -> tuple[bool, bool]:
    """Whether unused layers come before and after a layer in the same `nn.Sequential`."""
    parent, _, _ = name.rpartition(".")
    if type(model.get_submodule(parent)) is not nn.Sequential:
        return False, False
    same = [other for other in layers if other.rpartition(".")[0] == parent]
    return same.index(name) > 0, same.index(name) < len(same) - 1


def mentioned(model: nn.Module, name: str) -> bool:
    """Whether the code of the network could call a layer, by the attributes on the way to it."""
    owner = model
    for part in name.split("."):
        if not isinstance(owner, CONTAINERS):
            names = _names_in_code(owner)
            if part not in names and names.isdisjoint(_BY_ANY_NAME):
                return False
        owner = owner.get_submodule(part)
    return True


_BY_ANY_NAME = {"getattr", "get_submodule", "_modules", "children", "named_children", "modules"}
"""A method that calls one of these may reach layers under names that are not in its code."""


def _names_in_code(module: nn.Module) -> set[str]:
    """Attributes that the methods of a module mention, its constructor apart."""
    classes = [kind for kind in type(module).__mro__ if kind.__module__ != nn.Module.__module__]
    values = [value for kind in classes for name, value in vars(kind).items() if name != "__init__"]
    todo = [_code_of(value) for value in [*values, *vars(module).values()]]
    found: set[str] = set()
    while todo:
        code = todo.pop()
        if code is not None:
            found.update(code.co_names)
            found.update(constant for constant in code.co_consts if isinstance(constant, str))
            todo += [constant for constant in code.co_consts if inspect.iscode(constant)]
    return found


def _code_of(value: object) -> CodeType | None:
    """The code of a function, method or property; None of anything else."""
    inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    code = getattr(inspect.unwrap(inner), "__code__", None) if callable(inner) else None
    return code if isinstance(code, CodeType) else None
