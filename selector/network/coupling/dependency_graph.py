"""The channels of a network followed from layer to layer, through Torch-Pruning's graph.

Its groups carry no names, so channels are followed here by the qualified names of the layers. What
comes out are candidates; `tracing` judges them.
"""

import threading
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from selector.network.coupling.traced_graph import (
    LostError,
    Reached,
    TracedGraph,
    UnfollowableError,
)
from selector.network.groups import OUTPUT, Group, Slice
from selector.network.layers import (
    CONVOLUTION,
    is_depthwise,
    is_grouped,
    is_statistics_norm,
    layer_width,
    positions_per_group,
    removable,
    same_in_every_group,
)
from selector.typing import Side

_tracing = threading.RLock()
"""Torch-Pruning keeps state on its classes: one network is traced at a time."""


def candidate_groups(
    model: nn.Module, inputs: object, *, training: bool = False
) -> tuple[list[Group], dict[str, str]]:
    """Groups as the dependency graph has them, and those with a layer nobody can cut exactly.

    Args:
        model: Any network; left exactly as found.
        inputs: A few images, as the network is called with.
        training: Trace the network in training mode; its BatchNorm statistics are then changed.

    Returns:
        The groups, without their costs, and root -> reason for those that cannot be cut.

    Raises:
        SelectorError: The network cannot be traced.
    """
    with _tracing, warnings.catch_warnings():
        # The graph warns of what it cannot follow; the law finds out what that means.
        warnings.simplefilter("ignore")
        return _follow(model, TracedGraph(model, inputs, training=training))


def _follow(model: nn.Module, graph: TracedGraph) -> tuple[list[Group], dict[str, str]]:
    groups: list[Group] = []
    refused: dict[str, str] = {}
    visited: set[nn.Module] = set()
    lost: str | None = None
    for name, module in model.named_modules():
        if not isinstance(module, CONVOLUTION | nn.Linear) or module not in graph:
            continue
        if module in visited or is_depthwise(module):
            continue
        if lost is not None:
            refused[name] = lost
            continue
        try:
            reached = graph.follow(module)
        except UnfollowableError as error:
            refused[name] = str(error)
            lost = refused[name] if isinstance(error, LostError) else None
            continue
        visited |= {place.module for place in reached if place.side != "in"}
        group = _group(model, name, reached)
        if isinstance(group, Group):
            groups.append(group)
        else:
            refused[name] = group
    return groups, refused


def _group(model: nn.Module, name: str, reached: Sequence[Reached]) -> Group | str:
    """The group of a root, or why it cannot be cut."""
    layers = dict(model.named_modules())
    if is_grouped(layers[name]) and positions_per_group(layers[name], "out") == 1:
        return _inseparable(name, layers[name])
    slices = _slices(reached, {layer: name for name, layer in layers.items()})
    if isinstance(slices, str):
        return slices
    grouped = [part for part in slices if is_grouped(layers[part.layer])]
    for part in grouped:
        if not same_in_every_group(layers[part.layer], part.side, part.indices):
            return (
                f"{_described(part.layer, layers[part.layer])}, and these channels do not lie at "
                "the same offsets in each"
            )
    belongs = _removable_channels(layer_width(layers[name], "out"), grouped, layers)
    if len(set(Counter(belongs).values())) > 1:
        return "grouped convolutions tie together more of its channels in one place than elsewhere"
    channels = len(set(belongs))
    if channels < 2:
        widest = max(grouped, key=lambda part: layers[part.layer].groups, default=None)
        return _inseparable(widest.layer, layers[widest.layer]) if widest else _SINGLE
    slices = [replace(p, channels=tuple(belongs[root] for root in p.channels)) for p in slices]
    group = Group(name, channels, tuple(slices), 0.0, 0.0)
    return group if group.consumers else OUTPUT


_SINGLE = "it has a single channel"


def _removable_channels(
    width: int, grouped: Sequence[Slice], layers: Mapping[str, nn.Module]
) -> list[int]:
    """For every output of the root, the removable channel that it belongs to.

    A grouped convolution stays one only when every group of it loses the same offsets, so outputs
    at the same offset go together, and so on through every grouped convolution that they reach.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = []
    for part in grouped:
        per_group = positions_per_group(layers[part.layer], part.side)
        first: dict[int, int] = {}
        for index, root in zip(part.indices, part.channels, strict=True):
            pairs.append((root, first.setdefault(index % per_group, root)))
    if not pairs:
        return list(range(width))
    ones, others = zip(*pairs, strict=True)
    together = coo_array(([True] * len(pairs), (ones, others)), shape=(width, width))
    _, labels = connected_components(together, directed=False)
    number: dict[int, int] = {}
    return [number.setdefault(int(label), len(number)) for label in labels]


def _slices(reached: Sequence[Reached], names: Mapping[nn.Module, str]) -> list[Slice] | str:
    """Where the outputs of the root lie in every layer, or why one cannot lose them."""
    slices: dict[tuple[str, Side], Slice] = {}
    for place in reached:
        module = place.module
        if isinstance(module, nn.Parameter):
            return "its channels reach a bare nn.Parameter outside any layer"
        if module not in names or isinstance(module, nn.Identity):
            continue  # concatenation, reshape, addition: nothing of its own to cut
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            continue
        if is_statistics_norm(module) or not removable(module, place.side):
            if not any(True for _ in module.parameters(recurse=False)):
                continue
            return _why_not(names[module], module)
        part = Slice(names[module], place.side, place.indices, place.roots)
        slices[part.layer, part.side] = part
    return list(slices.values())


def _why_not(name: str, layer: nn.Module) -> str:
    kind = type(layer).__name__
    if is_statistics_norm(layer):
        return f"{kind} {name!r} mixes channels: masked and cut networks would differ"
    return f"{kind} {name!r} is a layer whose channels cannot be cut exactly"


def _inseparable(name: str, layer: nn.Module) -> str:
    return f"{_described(name, layer)}: these channels could only go all together"


def _described(name: str, layer: nn.Module) -> str:
    return f"{type(layer).__name__} {name!r} has {layer.groups} groups"
