"""Layers that a forward pass in evaluation mode does not use, and the groups that they touch.

Auxiliary heads run in training mode only: they are followed there, and cut with the rest. What runs
in neither mode may forbid a cut: see `unused`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from selector.data.forward import call, device_of, evaluating
from selector.network.copying import copy_of
from selector.network.coupling.unused import lookalike, mentioned
from selector.network.coupling.watching import OperatorWatch
from selector.network.groups import Group, Slice
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
    known = [name for name in idle if mentioned(model, name)]
    if not idle:
        return Training([], [])
    twin = copy_of(model).train()
    devices = [device_of(model)] if device_of(model).type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            with torch.no_grad():
                unused = set(_unused(twin, lambda: call(twin, inputs)))
            running = [name for name in idle if name not in unused]
            left = [name for name in known if name in unused]
            return Training(running, left, *(follow(twin, inputs) if running else ((), {})))
        except Exception:  # A pass that needs targets, say: nothing can be learnt from it.
            return Training([], known)


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
        elif layer := lookalike(model, training.unused, group):
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
