"""A group of channels as a value."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from numbers import Integral

from selector.errors import SelectorError
from selector.network.bare import is_bare, kept_place
from selector.typing import ChannelSet, Side

OUTPUT = "no layer reads it: it is an output of the network"
"""Why channels stay that nothing of the network reads."""


@dataclass(frozen=True)
class Slice:
    """Where a group's channels lie in one layer."""

    layer: str
    """Qualified name of the layer in the network."""
    side: Side
    """`out`: a producer loses outputs; `in`: a consumer loses inputs; `both`: channel-wise.
    Other names stand for places outside layers: see `selector.network.bare`."""
    indices: tuple[int, ...]
    """Positions along the layer's dimension; a channel has several of a flattened map, and one in
    every group of a grouped convolution."""
    channels: tuple[int, ...]
    """For every position, the group's channel that it belongs to."""
    idle: bool = False
    """The layer does not run in evaluation mode, or other code uses its weight: it is cut, but
    nothing can be measured in it."""


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together from all the layers of `slices`."""

    name: str
    """Qualified name of the root: the first producer in the order of the network's definition."""
    channels: int
    """Number of removable channels; where convolutions are grouped, each is the same offset in
    every one of their groups, and so `span` filters of the root."""
    slices: tuple[Slice, ...]
    macs_per_channel: float
    """Multiply-accumulates per image that go with one removable channel, all else unpruned."""
    parameters_per_channel: float
    reading: str = ""
    """By which of several ways of following channels it was found, so that it is found again."""

    def __hash__(self) -> int:
        """By name: groups of one network differ in it, and the slices are long."""
        return hash(self.name)

    @cached_property
    def span(self) -> int:
        """Filters of the root that one channel covers; one, unless convolutions are grouped."""
        return len(self._root.indices) // self.channels

    @cached_property
    def by_offset(self) -> bool:
        """Whether channels are offsets of the root's outputs, in one or several groups of them."""
        pairs = zip(self._root.indices, self._root.channels, strict=True)
        return all(index % self.channels == channel for index, channel in pairs)

    @property
    def _root(self) -> Slice:
        return next(part for part in self.slices if (part.layer, part.side) == (self.name, "out"))

    @cached_property
    def running(self) -> tuple[Slice, ...]:
        """The slices in which something can be measured: those of layers that run."""
        return tuple(part for part in self.slices if not part.idle)

    @cached_property
    def sided(self) -> tuple[Slice, ...]:
        """The slices that are sides of layers: what costs are counted of."""
        return tuple(part for part in self.slices if not is_bare(part.side))

    @cached_property
    def sides(self) -> frozenset[tuple[str, Side]]:
        """The layers that hold its channels, each with the side."""
        return frozenset((part.layer, part.side) for part in self.slices)

    @cached_property
    def takes_statistics(self) -> bool:
        """Whether a module takes statistics over the channels: LayerNorm, for one.

        Removal then changes what is kept, and so the masked network has such modules run on the
        kept channels.
        """
        return any(kept_place(part.side) for part in self.slices)

    @cached_property
    def producers(self) -> tuple[str, ...]:
        """Layers that run and lose output channels."""
        return self._layers("out")

    @cached_property
    def consumers(self) -> tuple[str, ...]:
        """Layers that run and lose input channels."""
        return self._layers("in")

    @cached_property
    def between(self) -> tuple[str, ...]:
        """Channel-wise layers that run: BatchNorm, InstanceNorm, depthwise, PReLU."""
        return self._layers("both")

    def _layers(self, side: Side) -> tuple[str, ...]:
        return tuple(part.layer for part in self.running if part.side == side)

    def checked(self, channel_set: ChannelSet) -> tuple[int, ...]:
        """The set sorted, once it is sure that it can be removed.

        Raises:
            SelectorError: No whole numbers, a channel out of range or repeated, or nothing would be
                left.
        """
        numbers = channel_set.tolist() if hasattr(channel_set, "tolist") else channel_set
        for channel in numbers:
            if isinstance(channel, bool) or not isinstance(channel, Integral):
                raise SelectorError(
                    f"channel {channel!r} of group {self.name!r} must be a whole number"
                )
        chosen = tuple(sorted(map(int, numbers)))
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


def find_group(groups: Mapping[str, Group], name: str) -> Group:
    """The group of that name.

    Raises:
        SelectorError: There is none; the known names are listed.
    """
    if name not in groups:
        raise SelectorError(f"unknown group {name!r}; known: {', '.join(groups)}")
    return groups[name]
