"""A group of channels as a value, and its removal: masked or cut out, with the same loss."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, cast

import torch
import torch_pruning as tp
from torch import Tensor, nn

from selector.errors import SelectorError

Side = Literal["out", "in", "both"]
ChannelSet = Sequence[int]

CONVOLUTION = nn.modules.conv._ConvNd
NORMALISATION = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Slice:
    """Where a group's channels lie in one layer."""

    layer: str
    """Qualified name of the layer in the network."""
    side: Side
    """`out`: a producer loses outputs; `in`: a consumer loses inputs; `both`: channel-wise."""
    indices: tuple[int, ...]
    """Positions along the layer's dimension; a flattened map has several for each channel."""
    channels: tuple[int, ...]
    """For every position, the group's channel that it belongs to."""


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together from all the layers of `slices`."""

    name: str
    """Qualified name of the root: the first producer in the order of the network's definition."""
    channels: int
    slices: tuple[Slice, ...]
    macs_per_channel: float
    """Multiply-accumulates per image that go with one channel, all else unpruned."""
    parameters_per_channel: float

    def __hash__(self) -> int:
        """By name: groups of one network differ in it, and the slices are long."""
        return hash(self.name)

    @cached_property
    def producers(self) -> tuple[str, ...]:
        """Layers that lose output channels."""
        return tuple(part.layer for part in self.slices if part.side == "out")

    @cached_property
    def consumers(self) -> tuple[str, ...]:
        """Layers that lose input channels."""
        return tuple(part.layer for part in self.slices if part.side == "in")

    @cached_property
    def between(self) -> tuple[str, ...]:
        """Channel-wise layers with parameters of their own: BatchNorm, depthwise, PReLU."""
        return tuple(part.layer for part in self.slices if part.side == "both")

    def checked(self, channel_set: ChannelSet) -> tuple[int, ...]:
        """The set sorted, once it is sure that it can be removed.

        Raises:
            SelectorError: A channel out of range or repeated, or nothing would be left.
        """
        chosen = tuple(sorted(int(channel) for channel in channel_set))
        if len(set(chosen)) < len(chosen):
            twice = next(a for a, b in pairwise(chosen) if a == b)
            raise SelectorError(f"channel {twice} of group {self.name!r} is named twice")
        if chosen and not (chosen[0] >= 0 and chosen[-1] < self.channels):
            wrong = chosen[0] if chosen[0] < 0 else chosen[-1]
            raise SelectorError(
                f"group {self.name!r} has no channel {wrong}; it has 0 to {self.channels - 1}"
            )
        if len(chosen) == self.channels:
            raise SelectorError(
                f"all {self.channels} channels of group {self.name!r} would go; leave at least one"
            )
        return chosen


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
        elif layer.groups == 1:
            found = tp.prune_conv_out_channels if side == "out" else tp.prune_conv_in_channels
    elif isinstance(layer, nn.Linear):
        found = tp.prune_linear_out_channels if side == "out" else tp.prune_linear_in_channels
    elif isinstance(layer, NORMALISATION) and side == "both":
        found = tp.prune_batchnorm_out_channels
    elif isinstance(layer, nn.PReLU) and side == "both":
        found = tp.prune_prelu_out_channels
    return found


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a convolution maps every channel to itself, and so stands between."""
    return (
        isinstance(layer, CONVOLUTION)
        and layer.groups == layer.in_channels == layer.out_channels > 1
    )


def input_dimension(layer: nn.Module) -> int:
    """The dimension of `layer.weight` that runs over the layer's inputs."""
    return 0 if isinstance(layer, CONVOLUTION) and layer.transposed else 1


def output_dimension(layer: nn.Module) -> int:
    """The dimension of `layer.weight` that runs over the layer's outputs."""
    return 1 - input_dimension(layer)


def weight_of(model: nn.Module, layer: str) -> nn.Parameter:
    """The weight of a layer, by the layer's qualified name."""
    return cast(nn.Parameter, model.get_submodule(layer).weight)


@contextmanager
def masked(model: nn.Module, group: Group, channel_set: ChannelSet) -> Iterator[None]:
    """Context in which a channel set is removed by zeroing the consumers' input weights.

    Everything between producers and consumers is channel-wise, so the loss is that of the network
    with the channels physically cut out. The weights come back bit for bit.

    Raises:
        SelectorError: A channel set that `Group.checked` refuses.
    """
    chosen = set(group.checked(channel_set))
    undo: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for part in group.slices:
            if part.side == "in":
                weight = weight_of(model, part.layer)
                undo.append((weight, weight.data))
                gone = [i for i, c in zip(part.indices, part.channels, strict=True) if c in chosen]
                dimension = input_dimension(model.get_submodule(part.layer))
                index = torch.tensor(gone, dtype=torch.long, device=weight.device)
                weight.data = weight.data.index_fill(dimension, index, 0)
        yield
    finally:
        for weight, data in reversed(undo):
            weight.data = data


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
    return layer, remove


def layer_width(layer: nn.Module, side: Side) -> int:
    """How many positions a layer has on one side."""
    if isinstance(layer, CONVOLUTION):
        return layer.in_channels if side == "in" else layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features if side == "in" else layer.out_features
    if isinstance(layer, NORMALISATION):
        return layer.num_features
    if isinstance(layer, nn.PReLU):
        return layer.num_parameters
    raise SelectorError(f"a {type(layer).__name__} has no channels that can be removed")


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


def find_group(groups: Mapping[str, Group], name: str) -> Group:
    """The group of that name.

    Raises:
        SelectorError: There is none; the known names are listed.
    """
    if name not in groups:
        raise SelectorError(f"unknown group {name!r}; known: {', '.join(groups)}")
    return groups[name]
