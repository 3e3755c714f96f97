"""Removal by masking: what a cut network must give, without a cut.

The weights that read a channel are zero. Where a module takes statistics over the channels, as
LayerNorm does, a removal changes what is kept, too: the cut network is then the one in which such a
module sees the kept channels alone.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.network.bare import is_given_back, kept_place, tensor_place
from selector.network.groups import Group, Slice
from selector.network.layers import input_dimension, reading_weights
from selector.network.surgery import temporarily_cut
from selector.typing import ChannelSet, Side

Removals = list[tuple[Group, tuple[int, ...]]]

_ACTIVE = "_selector_removals"
"""Where a module notes what is removed while it runs on the kept channels."""


@contextmanager
def masked(model: nn.Module, group: Group, channel_set: ChannelSet) -> Iterator[None]:
    """Context in which a channel set is removed by zeroing the consumers' input weights.

    Everything between producers and consumers is channel-wise, or is run on the kept channels, so
    the loss is that of the network with the channels physically cut out. The weights come back bit
    for bit.

    Raises:
        SelectorError: A channel set that `Group.checked` refuses.
    """
    chosen = set(group.checked(channel_set))
    undo: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for part in group.slices:
            layer = model.get_submodule(part.layer)
            gone = [i for i, c in zip(part.indices, part.channels, strict=True) if c in chosen]
            for weight, dimension in _readers(layer, part.side):
                undo.append((weight, weight.data))
                weight.data = _zeroed(weight.data, dimension, gone)
        # Autocast keeps what it has cast a parameter to, by the parameter's identity.
        torch.clear_autocast_cache()
        with run_on_kept(model, group, chosen):
            yield
    finally:
        for weight, data in reversed(undo):
            weight.data = data
        torch.clear_autocast_cache()


def _readers(layer: nn.Module, side: Side) -> Iterator[tuple[nn.Parameter, int]]:
    """The parameters that read channels from a side, and the dimension that does.

    Of a matrix outside layers nothing says whether it reads or makes them: what it makes of a
    removed channel reads nobody.
    """
    if side == "in":
        for name in reading_weights(layer):
            yield layer.get_parameter(name), input_dimension(layer)
    elif (place := tensor_place(side)) is not None:
        tensor = getattr(layer, place[0])
        if isinstance(tensor, nn.Parameter) and tensor.ndim > 1:
            yield tensor, place[1]


def _zeroed(weight: Tensor, dimension: int, gone: Sequence[int]) -> Tensor:
    index = torch.tensor(gone, dtype=torch.long, device=weight.device)
    # The groups of a convolution share the columns: one for each offset in a group.
    return weight.index_fill(dimension, index % weight.shape[dimension], 0)


@contextmanager
def run_on_kept(model: nn.Module, group: Group, channels: Collection[int]) -> Iterator[None]:
    """Context in which modules that take statistics over a group's channels see the kept ones.

    Args:
        model: The network.
        group: A group; nothing happens where no module takes statistics over it.
        channels: Those that are removed.
    """
    names = dict.fromkeys(part.layer for part in group.slices if kept_place(part.side))
    modules = [(name, model.get_submodule(name)) for name in names] if channels else []
    removal = group, tuple(sorted(channels))
    hooks = []
    try:
        for name, module in modules:
            active: Removals = vars(module).setdefault(_ACTIVE, [])
            if not active:
                vars(module)["forward"] = _on_kept(model, name, module)
            active.append(removal)
            # PyTorch's fused layers take the weights themselves, unless there is a hook.
            hooks.append(module.register_forward_pre_hook(lambda *_: None))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for _, module in modules:
            active = vars(module).get(_ACTIVE, [])
            if active:
                active.remove(removal)
            if not active:
                vars(module).pop(_ACTIVE, None)
                vars(module).pop("forward", None)


def _on_kept(model: nn.Module, name: str, module: nn.Module) -> Callable[..., object]:
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> object:
        removals = list(vars(module)[_ACTIVE])
        places = _places(name, removals)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [number for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        selected: dict[int, tuple[int, Tensor]] = {}
        for (argument, dimension), (gone, given_back) in places.items():
            number = tensors[argument]
            kept = _others(leaves[number], dimension, gone)
            if given_back:
                selected[dimension] = leaves[number].shape[dimension], kept
            leaves[number] = leaves[number].index_select(dimension, kept)
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        inner = [(_inside(name, group), channels) for group, channels in removals]
        with temporarily_cut(model, inner):
            found = plain(*args, **kwargs)
        spread = [_spread(leaf, selected) for leaf in pytree.tree_leaves(found)]
        _, shape = pytree.tree_flatten(found)
        return pytree.tree_unflatten(spread, shape)

    return forward


def _places(name: str, removals: Removals) -> dict[tuple[int, int], tuple[set[int], bool]]:
    """Argument and dimension -> the positions that go, and whether the module gives them back."""
    found: dict[tuple[int, int], tuple[set[int], bool]] = {}
    for group, channels in removals:
        gone = set(channels)
        for part in group.slices:
            place = kept_place(part.side)
            if part.layer == name and place is not None:
                pairs = zip(part.indices, part.channels, strict=True)
                positions, _ = found.setdefault(place, (set(), is_given_back(part.side)))
                positions.update(i for i, c in pairs if c in gone)
    return found


def _others(tensor: Tensor, dimension: int, gone: Collection[int]) -> Tensor:
    kept = [i for i in range(tensor.shape[dimension]) if i not in gone]
    return torch.tensor(kept, dtype=torch.long, device=tensor.device)


def _spread(leaf: object, selected: dict[int, tuple[int, Tensor]]) -> object:
    """An output with zeros for the channels that the module did not see."""
    if isinstance(leaf, Tensor):
        for dimension, (width, kept) in selected.items():
            if -leaf.ndim <= dimension < leaf.ndim and leaf.shape[dimension] == len(kept):
                shape: Sequence[int] = [*leaf.shape]
                d = dimension % leaf.ndim
                shape = [*shape[:d], width, *shape[d + 1 :]]
                leaf = leaf.new_zeros(shape).index_copy(d, kept, leaf)
    return leaf


def _inside(name: str, group: Group) -> Group:
    """A group's slices inside a module."""
    parts: tuple[Slice, ...] = tuple(
        part for part in group.slices if part.layer == name or part.layer.startswith(f"{name}.")
    )
    return replace(group, slices=parts)
