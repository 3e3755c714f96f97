"""The channels of a network followed from layer to layer, through Torch-Pruning's graph.

The only file that knows that graph. Its groups carry no names, so channels are followed here by the
qualified names of the layers. What comes out are candidates; `tracing` judges them.
"""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.forward import call
from selector.errors import SelectorError
from selector.network.groups import Group, Slice
from selector.network.layers import (
    CONVOLUTION,
    is_depthwise,
    is_grouped,
    layer_width,
    positions_per_group,
    same_in_every_group,
)
from selector.network.surgery import removable
from selector.typing import Side


class _Graph(tp.DependencyGraph):  # type: ignore[misc]
    """Torch-Pruning's graph, with our notion of a depthwise convolution.

    Torch-Pruning looks at the outputs alone, and takes a grouped convolution with a single output
    in each group for depthwise, however many inputs there are in each.
    """

    def get_pruner_of_module(self, module: nn.Module) -> Any:
        """The functions that cut a layer."""
        if is_grouped(module):
            return self.REGISTERED_PRUNERS[tp.ops.OPTYPE.CONV]
        return super().get_pruner_of_module(module)


def candidate_groups(model: nn.Module, inputs: object) -> tuple[list[Group], dict[str, str]]:
    """Groups as the dependency graph has them, and those with a layer nobody can cut exactly.

    Args:
        model: Any network; left exactly as found.
        inputs: A few images, as the network is called with.

    Returns:
        The groups, without their costs, and root -> reason for those that cannot be cut.

    Raises:
        SelectorError: The network cannot be traced.
    """
    with warnings.catch_warnings():
        # The graph warns of what it cannot follow; the law finds out what that means.
        warnings.simplefilter("ignore")
        return _follow(model, inputs)


def _follow(model: nn.Module, inputs: object) -> tuple[list[Group], dict[str, str]]:
    graph = _build_graph(model, inputs)
    groups: list[Group] = []
    refused: dict[str, str] = {}
    visited: set[nn.Module] = set()
    for name, module in model.named_modules():
        if not isinstance(module, CONVOLUTION | nn.Linear) or module not in graph.module2node:
            continue
        if module in visited or is_depthwise(module):
            continue
        pruner = graph.get_pruner_of_module(module)
        width = pruner.get_out_channels(module)
        try:
            found = graph.get_pruning_group(module, pruner.prune_out_channels, list(range(width)))
        except Exception as error:  # What it cannot follow (a channel shuffle, say) it fails on.
            refused[name] = f"Torch-Pruning cannot follow its channels: {error!r}"
            continue
        visited |= {d.target.module for d, _ in found if graph.is_out_channel_pruning_fn(d.handler)}
        group = _group(model, name, graph, found)
        if isinstance(group, Group):
            groups.append(group)
        else:
            refused[name] = group
    return groups, refused


def _group(model: nn.Module, name: str, graph: tp.DependencyGraph, found: tp.Group) -> Group | str:
    """The group of a root, or why it cannot be cut."""
    layers = dict(model.named_modules())
    if is_grouped(layers[name]) and positions_per_group(layers[name], "out") == 1:
        return _inseparable(name, layers[name])
    slices = _slices(graph, found, {layer: name for name, layer in layers.items()})
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
    return group if group.consumers else "no layer reads it: it is an output of the network"


_SINGLE = "it has a single channel"


def _removable_channels(
    width: int, grouped: Sequence[Slice], layers: Mapping[str, nn.Module]
) -> list[int]:
    """For every output of the root, the removable channel that it belongs to.

    A grouped convolution stays one only when every group of it loses the same offsets, so outputs
    at the same offset go together, and so on through every grouped convolution that they reach.
    """
    leader = list(range(width))

    def leader_of(root: int) -> int:
        while leader[root] != root:
            root = leader[root]
        return root

    for part in grouped:
        per_group = positions_per_group(layers[part.layer], part.side)
        first: dict[int, int] = {}
        for index, root in zip(part.indices, part.channels, strict=True):
            one, other = leader_of(root), leader_of(first.setdefault(index % per_group, root))
            leader[max(one, other)] = min(one, other)
    leaders = [leader_of(root) for root in range(width)]
    number = {root: n for n, root in enumerate(sorted(set(leaders)))}
    return [number[root] for root in leaders]


def _slices(
    graph: tp.DependencyGraph, found: tp.Group, names: Mapping[nn.Module, str]
) -> list[Slice] | str:
    """Where the outputs of the root lie in every layer, or why one cannot lose them."""
    slices: dict[tuple[str, Side], Slice] = {}
    for item in found:
        module, handler = item.dep.target.module, item.dep.handler
        if isinstance(module, nn.Parameter):
            return "its channels reach a bare nn.Parameter outside any layer"
        if module not in names or isinstance(module, nn.Identity):
            continue  # concatenation, reshape, addition: nothing of its own to cut
        side: Side = "out" if graph.is_out_channel_pruning_fn(handler) else "in"
        if side == "out" and graph.is_in_channel_pruning_fn(handler):
            side = "both"
        if removable(module, side) is None:
            if not any(True for _ in module.parameters(recurse=False)):
                continue
            return _why_not(names[module], module)
        roots = tuple(int(root) for root in item.root_idxs)
        part = Slice(names[module], side, tuple(int(i) for i in item.idxs), roots)
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            continue
        slices[part.layer, side] = part
    return list(slices.values())


def _why_not(name: str, layer: nn.Module) -> str:
    kind = type(layer).__name__
    if isinstance(layer, CONVOLUTION) and layer.transposed and layer.groups > 1:
        return f"{_described(name, layer)}: grouped transposed convolutions are not handled"
    if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
        return f"{kind} {name!r} mixes channels: masked and cut networks would differ"
    return f"{kind} {name!r} is a layer whose channels cannot be cut exactly"


def _inseparable(name: str, layer: nn.Module) -> str:
    return f"{_described(name, layer)}: these channels could only go all together"


def _described(name: str, layer: nn.Module) -> str:
    return f"{type(layer).__name__} {name!r} has {layer.groups} groups"


def _build_graph(model: nn.Module, inputs: object) -> _Graph:
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    leaves, spec = pytree.tree_flatten(inputs)
    fresh = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    graph = _Graph()
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            graph.build_dependency(
                model,
                example_inputs=pytree.tree_unflatten(fresh, spec),
                forward_fn=call,
                output_transform=_tensors_with_gradient,
                verbose=False,
            )
        return graph
    except Exception as error:
        raise SelectorError(
            f"the network cannot be traced ({type(error).__name__}: {error}); "
            "channels are followed through autograd, so the forward pass must not run under "
            "no_grad or detach its activations"
        ) from error
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


def _tensors_with_gradient(outputs: object) -> list[Tensor]:
    found = pytree.tree_leaves(outputs)
    tensors = [leaf for leaf in found if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
    if not tensors:
        raise SelectorError("no output of the network has a gradient")
    return tensors
