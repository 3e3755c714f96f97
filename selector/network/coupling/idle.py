"""Layers that a forward pass in evaluation mode does not use, and the groups that they touch.

Auxiliary heads run in training mode only: they are followed there, and cut with the rest. A layer
that runs in neither mode, though the code of the network mentions it, belongs to another method or
flag. Where its width is that of a group, it may read or write the group's channels, and the group
stays whole.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType

import torch
from torch import nn

from selector.data.forward import call, device_of, evaluating
from selector.network.copying import copy_of
from selector.network.coupling.watching import OperatorWatch
from selector.network.groups import Group, Slice
from selector.network.layers import CONVOLUTION, NORMALISATION, layer_width
from selector.network.surgery import temporarily_cut


def idle_layers(model: nn.Module, inputs: object) -> list[str]:
    """Layers that a forward pass in evaluation mode does not use."""
    with torch.no_grad(), evaluating(model):
        return _unused(model, lambda: call(model, inputs))


@dataclass(frozen=True, eq=False)
class Training:
    """What the forward pass in training mode shows of the layers that evaluation does not use."""

    running: Sequence[str]
    """Idle layers that run in it."""
    unused: Sequence[str]
    """Those that do not run in it either, though code mentions them."""
    candidates: Sequence[Mapping[str, Group]] = ()
    """Groups in training mode by name, from every source; none where nothing idle runs in it:
    groups are then as they are in evaluation mode."""
    refused: Mapping[str, str] = field(default_factory=dict)


Follow = Callable[[nn.Module, object], tuple[Sequence[Mapping[str, Group]], Mapping[str, str]]]
"""(network in training mode, inputs) -> groups of every source, and root -> reason for others."""


def in_training(model: nn.Module, inputs: object, idle: Sequence[str], follow: Follow) -> Training:
    """What idle layers do in training mode.

    Args:
        model: The network; left exactly as found, and so is the random state.
        inputs: A few images.
        idle: What `idle_layers` gives.
        follow: Finds groups; called with a copy.
    """
    mentioned = [name for name in idle if _mentioned(model, name)]
    if not idle:
        return Training([], [])
    twin = copy_of(model).train()
    devices = [device_of(model)] if device_of(model).type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            with torch.no_grad():
                unused = set(_unused(twin, lambda: call(twin, inputs)))
            running = [name for name in idle if name not in unused]
            left = [name for name in mentioned if name in unused]
            return Training(running, left, *(follow(twin, inputs) if running else ((), {})))
        except Exception:  # A pass that needs targets, say: nothing can be learnt from it.
            return Training([], mentioned)


def with_idle_layers(
    model: nn.Module, inputs: object, groups: Sequence[Group], training: Training
) -> tuple[list[Group], dict[str, str]]:
    """Groups with what else they reach in training mode, and those that unused layers forbid.

    Args:
        model: The network; left exactly as found, and so is the random state.
        inputs: A few images.
        groups: Groups as they are in evaluation mode.
        training: What idle layers do in training mode.

    Returns:
        The groups, those that are refused included, and root -> reason for the latter.
    """
    found, reasons = [], {}
    for group in groups:
        whole = _whole(group, training)
        if whole is None and group.name in training.refused:
            reasons[group.name] = f"in training mode: {training.refused[group.name]}"
        elif whole is None:
            names = ", ".join(map(repr, training.running))
            reasons[group.name] = (
                f"in training mode its channels go elsewhere (layers that run only then: {names})"
            )
        elif layer := _lookalike(model, training.unused, group):
            reasons[group.name] = (
                f"layer {layer!r} does not run on the probe batch, and its width is that of these "
                "channels: were they cut, it might not fit any more"
            )
        found.append(group if whole is None else whole)
    extended = [group for group in found if any(part.idle for part in group.slices)]
    return found, reasons | _untrainable(model, inputs, extended)


def _whole(group: Group, training: Training) -> Group | None:
    """The group with what it reaches in training mode; None where it does something else there."""
    if not training.candidates:
        return group
    trained = (found.get(group.name) for found in training.candidates)
    fits = (_extended(group, other, training.running) for other in trained)
    return next((fit for fit in fits if fit is not None), None)


def _unused(model: nn.Module, run: object) -> list[str]:
    """Layers none of whose parameters or statistics are read while something runs."""
    assert callable(run)
    torch.clear_autocast_cache()  # Or weights that were cast before would not be read.
    with OperatorWatch() as watch:
        run()
    found = []
    for name, module in model.named_modules():
        own = [*module._parameters.values(), *module._buffers.values()]
        tensors = [tensor for tensor in own if tensor is not None]
        if tensors and not any(id(tensor) in watch.read for tensor in tensors):
            found.append(name)
    return found


def _extended(group: Group, trained: Group | None, idle: Sequence[str]) -> Group | None:
    """The group with the idle layers that it reaches in training mode, if that is all it does."""
    if trained is None or trained.channels != group.channels:
        return None
    known = {(part.layer, part.side): part for part in group.slices}
    reached = {(part.layer, part.side): part for part in trained.slices}
    if any(_places(reached.get(place)) != _places(part) for place, part in known.items()):
        return None
    more = [part for place, part in reached.items() if place not in known]
    if any(part.layer not in idle for part in more):
        return None
    extra = tuple(dataclasses.replace(part, idle=True) for part in more)
    return dataclasses.replace(group, slices=group.slices + extra)


def _places(part: Slice | None) -> set[tuple[int, int]]:
    return set() if part is None else set(zip(part.indices, part.channels, strict=True))


def _lookalike(model: nn.Module, unused: Sequence[str], group: Group) -> str | None:
    """An unused layer that could read or write a group's channels, by its width and its place.

    It lies in the smallest module that holds all layers of the group: elsewhere that module would
    have to return the channels to code that nothing of the probe batch passes.
    """
    used = [(part.layer, part.side) for part in group.slices if not part.idle]
    inside = _common_owner(model, [name for name, _ in used])
    near = [name for name in unused if not inside or name.startswith(f"{inside}.")]
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


def _mentioned(model: nn.Module, name: str) -> bool:
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


def _untrainable(model: nn.Module, inputs: object, groups: Sequence[Group]) -> dict[str, str]:
    """Groups without whose channels the network does not run in training mode."""
    reasons: dict[str, str] = {}
    for group in groups:
        twin = copy_of(model).train()
        devices = [device_of(model)] if device_of(model).type == "cuda" else []
        try:
            cut = temporarily_cut(twin, [(group, [0])])
            with torch.no_grad(), torch.random.fork_rng(devices), cut:
                call(twin, inputs)
        except Exception as error:
            reasons[group.name] = f"the network cannot be trained without its channels ({error})"
    return reasons
