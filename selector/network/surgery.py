"""Physical removal of channels from a network's layers."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch_pruning as tp
from torch import nn

from selector.errors import SelectorError
from selector.network.groups import Group
from selector.network.layers import (
    CONVOLUTION,
    NORMALISATION,
    is_depthwise,
    is_grouped,
    layer_width,
    same_in_every_group,
)
from selector.typing import ChannelSet, Side


@dataclass(frozen=True)
class Cut:
    """Positions removed from one side of one layer; a list of these replays a pruning."""

    layer: str
    side: Side
    indices: tuple[int, ...]


Remove = Callable[[nn.Module, list[int]], nn.Module]


def removable(layer: nn.Module, side: Side) -> Remove | None:
    """Torch-Pruning's function that removes positions from this kind of layer, if we trust it."""
    found: Remove | None = None
    if "weight" not in dict(layer.named_parameters(recurse=False)):
        # Parametrised (weight norm, spectral norm), or without parameters.
        return tp.prune_batchnorm_out_channels if isinstance(layer, NORMALISATION) else None
    if isinstance(layer, CONVOLUTION):
        if side == "both":
            found = tp.prune_depthwise_conv_out_channels if is_depthwise(layer) else None
        elif layer.groups == 1 or is_grouped(layer):
            found = tp.prune_conv_out_channels if side == "out" else tp.prune_conv_in_channels
    elif isinstance(layer, nn.Linear):
        found = tp.prune_linear_out_channels if side == "out" else tp.prune_linear_in_channels
    elif isinstance(layer, NORMALISATION) and side == "both":
        found = tp.prune_batchnorm_out_channels
    elif isinstance(layer, nn.PReLU) and side == "both":
        found = tp.prune_prelu_out_channels
    return found


def cuts_of(removals: Iterable[tuple[Group, ChannelSet]]) -> tuple[Cut, ...]:
    """What has to be removed from every layer so that the channel sets of these groups are gone.

    Positions are those of the network as it is before any of the removals.
    """
    gone: dict[tuple[str, Side], set[int]] = defaultdict(set)
    for group, channel_set in removals:
        chosen = set(group.checked(channel_set))
        for part in group.slices:
            for index, channel in zip(part.indices, part.channels, strict=True):
                if channel in chosen:
                    gone[part.layer, part.side].add(index)
    return tuple(Cut(layer, side, tuple(sorted(gone[layer, side]))) for layer, side in gone)


def outputs_gone(cuts: Iterable[Cut]) -> dict[str, tuple[int, ...]]:
    """Layer -> the outputs that these cuts take from it."""
    return {cut.layer: cut.indices for cut in cuts if cut.side != "in"}


def apply_cuts(model: nn.Module, cuts: Iterable[Cut]) -> None:
    """Remove the positions physically, in place, through Torch-Pruning's functions.

    Raises:
        SelectorError: A layer that is not there or cannot lose these positions; nothing is changed.
    """
    steps = [(cut, *_surgery(model, cut)) for cut in cuts]
    for cut, layer, remove in steps:
        trained = {name: p.requires_grad for name, p in layer.named_parameters(recurse=False)}
        remove(layer, list(cut.indices))
        for name, flag in trained.items():
            layer.get_parameter(name).requires_grad_(flag)


def _surgery(model: nn.Module, cut: Cut) -> tuple[nn.Module, Remove]:
    try:
        layer = model.get_submodule(cut.layer)
    except AttributeError:
        raise SelectorError(
            f"the network has no layer {cut.layer!r}; these cuts belong to another network"
        ) from None
    remove = removable(layer, cut.side)
    if remove is None:
        raise SelectorError(
            f"layer {cut.layer!r} ({type(layer).__name__}) cannot lose its {cut.side!r} channels"
        )
    width = layer_width(layer, cut.side)
    if cut.indices and not (min(cut.indices) >= 0 and max(cut.indices) < width):
        raise SelectorError(
            f"layer {cut.layer!r} has {width} {cut.side!r} positions, the cut names "
            f"{max(cut.indices)}; these cuts belong to another network"
        )
    if not same_in_every_group(layer, cut.side, cut.indices):
        raise SelectorError(
            f"the groups of layer {cut.layer!r} would not lose the same {cut.side!r} positions "
            "each; these cuts belong to another network"
        )
    return layer, remove


@contextmanager
def temporarily_cut(
    model: nn.Module, removals: Sequence[tuple[Group, ChannelSet]]
) -> Iterator[None]:
    """Context in which channel sets are cut out physically, on copies of the layers concerned."""
    cuts = cuts_of(removals)
    originals = {cut.layer: model.get_submodule(cut.layer) for cut in cuts}
    try:
        for name, layer in originals.items():
            _replace(model, name, copy.deepcopy(layer))
        apply_cuts(model, cuts)
        yield
    finally:
        for name, layer in originals.items():
            _replace(model, name, layer)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
