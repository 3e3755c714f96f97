"""Which layers run, in which order, and which of them a repair may refit."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.forward import call
from selector.errors import SelectorError
from selector.network.layers import CONVOLUTION, NORMALISATION
from selector.repair.walk import copied, first_argument


@dataclass(frozen=True)
class Schedule:
    """The layers of one forward pass."""

    calls: Mapping[str, int]
    """Layer -> how often it runs, in the order of the first calls."""
    norm_behind: Mapping[str, str]
    """Layer -> the BatchNorm that reads its outputs."""
    outputs: object
    """What the network gave."""


def record_schedule(model: nn.Module, inputs: object) -> Schedule:
    """Run a network once and note which layers with weights or statistics are called."""
    calls: Counter[str] = Counter()
    made: dict[int, tuple[str, Tensor, int]] = {}
    norm_behind: dict[str, str] = {}

    def noting(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls[name] += 1
            source = made.get(id(first_argument(args, kwargs)))
            if isinstance(layer, NORMALISATION) and source is not None:
                # An activation in place gives the same tensor, in its next version.
                if source[1]._version == source[2]:
                    norm_behind[source[0]] = name
            if isinstance(output, Tensor):
                # Kept alive, so that its id stays its own.
                made[id(output)] = name, output, output._version

        return hook

    handles = [
        layer.register_forward_hook(noting(name), with_kwargs=True)
        for name, layer in model.named_modules()
        if has_state(layer)
    ]
    try:
        outputs = call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Schedule(dict(calls), norm_behind, outputs)


def has_state(layer: nn.Module) -> bool:
    """Whether a module has weights of its own, or is a BatchNorm."""
    own = next(layer.parameters(recurse=False), None) is not None
    return own or isinstance(layer, NORMALISATION) or hasattr(layer, "parametrizations")


def why_not(model: nn.Module, name: str, shared: Mapping[str, str], *, frozen: bool) -> str | None:
    """Why a layer cannot be refitted; None if it can.

    Args:
        model: The pruned network.
        name: The layer's name in it.
        shared: What `shared_weights` says of the network.
        frozen: Whether layers with `requires_grad=False` are refitted, too.
    """
    layer = model.get_submodule(name)
    kind = type(layer).__name__
    if hasattr(layer, "parametrizations") or (
        isinstance(layer, (CONVOLUTION, nn.Linear)) and "weight" not in layer._parameters
    ):
        return "its weight is parametrised"
    if isinstance(layer, NORMALISATION):
        if not layer.track_running_stats or layer.running_mean is None:
            return "it keeps no statistics"
        own = list(layer.parameters(recurse=False))
        fixed = bool(own) and not any(p.requires_grad for p in own)
        return "frozen (requires_grad=False)" if fixed and not frozen else None
    if not isinstance(layer, (CONVOLUTION, nn.Linear)):
        return f"a {kind} is not refitted"
    weight = cast(nn.Parameter, layer.weight)
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    if not weight.requires_grad and not frozen:
        return "frozen (requires_grad=False)"
    return f"its weight is also {shared[name]}" if name in shared else None


def shared_weights(model: nn.Module) -> dict[str, str]:
    """Which other parameter a layer's weight is, for layers whose weights are tied.

    A layer that is registered under several names shares nothing.
    """
    names: dict[int, list[tuple[str, str]]] = {}
    for full, parameter in model.named_parameters(remove_duplicate=False):
        layer, _, kind = full.rpartition(".")
        names.setdefault(id(parameter), []).append((layer, kind))
    shared = {}
    for uses in names.values():
        for layer, kind in uses if len(uses) > 1 else ():
            own = model.get_submodule(layer)
            others = (
                f"{other}.{what}".lstrip(".")
                for other, what in uses
                if model.get_submodule(other) is not own
            )
            if kind == "weight" and (first := next(others, None)) is not None:
                shared[layer] = first
    return shared


def checked_schedule(original: nn.Module, pruned: nn.Module, inputs: object) -> Schedule:
    """The schedule of the unpruned network, once it is sure that both give the same twice.

    Raises:
        SelectorError: Outputs that change between two runs on the same images.
    """
    schedules = []
    for which, model in (("unpruned", original), ("pruned", pruned)):
        # A copy each time: networks may write into their inputs.
        first, second = (record_schedule(model, copied(inputs)) for _ in range(2))
        schedules.append(first)
        if not _same_outputs(first.outputs, second.outputs):
            raise SelectorError(
                f"the {which} network's outputs change between two runs on the same images, so "
                "there is nothing to fit to; switch off what is random in its forward pass"
            )
    return schedules[0]


def _same_outputs(first: object, second: object) -> bool:
    """Whether two runs gave the same, up to what parallel sums may differ by."""
    one, two = (
        [t for t in pytree.tree_leaves(x) if isinstance(t, Tensor)] for x in (first, second)
    )
    return len(one) == len(two) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)
        for a, b in zip(one, two, strict=True)
    )
