"""The groups of a network after a cut, worked out from the cut alone: nothing is traced again.

In every layer that lost positions, those that are left get new numbers, and so they do in the
groups that lie in it. Costs follow by arithmetic. For loops that cut one channel at a time.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from selector.network.bare import is_bare
from selector.network.costs import Costs, LayerCost, saved_per_channel
from selector.network.groups import Group, Slice
from selector.network.surgery import Cut, cuts_of
from selector.network.tracing import Groups
from selector.typing import ChannelSet, Side

Removals = Sequence[tuple[Group, ChannelSet]]


def shrink(groups: Mapping[str, Group], removals: Removals) -> dict[str, Group]:
    """The groups of the network that is left when these channel sets have been cut out.

    Args:
        groups: Group name -> group, in the positions of the network before the cut.
        removals: Groups, as they are in `groups`, with the channels that go; each group once.

    Returns:
        Group name -> group in the positions of the cut network; its channels keep their order
        and get new numbers, its costs per channel stay. A group left with one channel is gone.

    Raises:
        SelectorError: A channel set that `Group.checked` refuses.
    """
    chosen = {group.name: group.checked(channels) for group, channels in removals}
    gone = _positions_gone(removals)
    found = {}
    for name, group in groups.items():
        left = group.channels - len(chosen.get(name, ()))
        if left > 1:
            slices = tuple(
                _shrunk_slice(part, gone.get((part.layer, part.side), ()), chosen.get(name, ()))
                for part in group.slices
            )
            found[name] = replace(group, channels=left, slices=slices)
    return found


def _positions_gone(removals: Removals) -> dict[tuple[str, Side], tuple[int, ...]]:
    """Layer and side -> positions that go, also where nothing is cut."""
    gone: dict[tuple[str, Side], set[int]] = defaultdict(set)
    for group, channels in removals:
        chosen = set(channels)
        for part in group.slices:
            pairs = zip(part.indices, part.channels, strict=True)
            gone[part.layer, part.side].update(i for i, c in pairs if c in chosen)
    return {place: tuple(sorted(positions)) for place, positions in gone.items()}


def shrink_all(groups: Groups, removals: Removals) -> Groups:
    """The same with the costs that the cut leaves, as tracing again would count them."""
    costs = _shrunk_costs(groups.costs, cuts_of(removals))
    prunable = {
        name: replace(
            group,
            macs_per_channel=saved_per_channel(costs, group, "macs"),
            parameters_per_channel=saved_per_channel(costs, group, "parameters"),
        )
        for name, group in shrink(groups.prunable, removals).items()
    }
    return Groups(MappingProxyType(prunable), groups.refused, costs)


def _shrunk_slice(part: Slice, gone: Sequence[int], channels: Sequence[int]) -> Slice:
    """A slice without the positions and channels (both ascending) that are gone."""
    if not gone:
        return part
    lost = set(gone)
    kept = [(i, c) for i, c in zip(part.indices, part.channels, strict=True) if i not in lost]
    return replace(
        part,
        indices=tuple(i - bisect_left(gone, i) for i, _ in kept),
        channels=tuple(c - bisect_left(channels, c) for _, c in kept),
    )


def _shrunk_costs(costs: Costs, cuts: Sequence[Cut]) -> Costs:
    layers = dict(costs.layers)
    for cut in cuts:
        if cut.layer in layers and not is_bare(cut.side):
            layers[cut.layer] = _shrunk_layer(layers[cut.layer], cut)
    return replace(costs, layers=layers)


def _shrunk_layer(layer: LayerCost, cut: Cut) -> LayerCost:
    """A layer's cost after one of its sides has lost positions; a bias stays on the input side."""
    width = layer.inputs if cut.side == "in" else layer.outputs
    left = width - len(cut.indices)
    smaller = replace(
        layer, macs=layer.macs * left / width, weights=round(layer.weights * left / width)
    )
    if cut.side == "in":
        return replace(smaller, inputs=left)
    extras = round(layer.extras * left / width)
    products = layer.products * left / width
    inputs = left if layer.channel_wise else layer.inputs
    return replace(smaller, outputs=left, inputs=inputs, extras=extras, products=products)
