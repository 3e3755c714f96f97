"""What a cut must give, made without the product's own masking: a copy with zeroed activations.

A channel that is cut exists nowhere: what its producers give is zeroed, and so is what its
consumers read. Modules that take statistics over the channels (LayerNorm, RMSNorm, GroupNorm and
the like) are run on the channels that are kept, since removing some changes the statistics; layers
that standardise their weights over their inputs, with the inputs that are kept.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from selector.network.groups import Group
from selector.network.layers import weight_of
from selector.network.surgery import Cut

CONVOLUTION = nn.modules.conv._ConvNd
PER_CHANNEL = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.PReLU,
    CONVOLUTION,
)
"""Layers between producers and consumers that treat every channel by itself."""


class Place(NamedTuple):
    """A dimension of a tensor that a module is called with."""

    argument: int
    dimension: int
    given_back: bool = True
    """Whether the module's outputs have these channels, too."""


Places = Mapping[Place, frozenset[int]]
"""Where channels are read -> positions that are gone."""

_TENSOR = re.compile(r"(\w+)\[(\d+)\]")
_STATISTICS = re.compile(r"(kept|read)\[(\d+), (-?\d+)\]")


def statistics_places(
    groups: Mapping[str, Group], removals: Mapping[str, Iterable[int]]
) -> dict[str, Places]:
    """Where the product says that statistics are taken over channels: it cuts nothing there.

    Args:
        groups: Of the unpruned network.
        removals: Group -> channels that go.

    Returns:
        Module -> places; what must come out there is for this file to say.
    """
    found: dict[str, dict[Place, frozenset[int]]] = {}
    for name, channels in removals.items():
        gone = set(channels)
        for part in groups[name].slices:
            if place := _STATISTICS.fullmatch(part.side):
                pairs = zip(part.indices, part.channels, strict=True)
                lost = frozenset(index for index, channel in pairs if channel in gone)
                key = Place(int(place[2]), int(place[3]), place[1] == "kept")
                places = found.setdefault(part.layer, {})
                places[key] = places.get(key, frozenset()) | lost
    return dict(found)


def masked_copy(
    model: nn.Module, cuts: Iterable[Cut], statistics: Mapping[str, Places] | None = None
) -> nn.Module:
    """A copy in which the positions of these cuts are zero wherever they would be.

    Args:
        model: The unpruned network.
        cuts: What is removed from it; sides that are names stand for bare tensors (`gamma[0]`) or
            for numbers that modules keep, which the whole network needs as they are.
        statistics: Modules that are run on the kept channels, beside layers like LayerNorm.
    """
    masked = copy.deepcopy(model)
    modules = dict(masked.named_modules())
    places = {name: dict(found) for name, found in (statistics or {}).items()}
    cuts = [cut for cut in cuts if cut.indices and cut.layer in modules]
    for cut in cuts:
        layer = modules[cut.layer]
        if cut.side == "both" and not isinstance(layer, PER_CHANNEL):
            if cut.layer not in places:
                dimension = 1 if _is_of_maps(layer) else -1
                places[cut.layer] = {Place(0, dimension): frozenset(cut.indices)}
    inside = tuple(f"{name}." for name in places)
    readers = {n for n, found in places.items() if not any(p.given_back for p in found)}
    for cut in cuts:
        apart = cut.layer in places or cut.layer.startswith(inside)
        if cut.layer in readers:
            apart = cut.side == "in"
        if not apart:
            _zero(masked, cut)
    for name, found in places.items():
        inner = [cut for cut in cuts if cut.layer == name or cut.layer.startswith(f"{name}.")]
        if name in readers:  # What it gives keeps its width, and is zeroed.
            inner = [cut for cut in inner if cut.side == "in"]
        _run_on_kept(modules[name], name, inner, found)
    return masked


def _zero(model: nn.Module, cut: Cut) -> None:
    layer, gone = model.get_submodule(cut.layer), torch.tensor(cut.indices)
    if isinstance(layer, nn.MultiheadAttention) and cut.side in ("in", "out"):
        # Queries, keys and values are made inside of it; their weight alone can be reached.
        weight, bias = layer.in_proj_weight, layer.in_proj_bias
        weight.data = weight.data.index_fill(1 if cut.side == "in" else 0, gone, 0)
        if bias is not None and cut.side == "out":
            bias.data = bias.data.index_fill(0, gone, 0)
        return
    if isinstance(layer, nn.Linear) and cut.side in ("in", "out"):
        # Some are never called: the block around them reads their weight alone.
        rows = weight_of(model, cut.layer).data
        rows[(slice(None), gone) if cut.side == "in" else gone] = 0
        if layer.bias is not None and cut.side == "out":
            layer.bias.data[gone] = 0
    if cut.side in ("out", "both"):
        layer.register_forward_hook(
            lambda layer, args, output: output.index_fill(_dimension(layer, output), gone, 0)
        )
    elif cut.side == "in":
        layer.register_forward_pre_hook(
            lambda layer, args: (
                args[0].index_fill(_dimension(layer, args[0]), gone, 0),
                *args[1:],
            )
        )
    elif place := _TENSOR.fullmatch(cut.side):
        tensor = getattr(layer, place[1])
        tensor.data = tensor.data.index_fill(int(place[2]), gone, 0)


def _run_on_kept(layer: nn.Module, name: str, cuts: Iterable[Cut], places: Places) -> None:
    """Let a module see the kept channels alone, and give zeros for the others."""
    small = _restricted(layer, name, cuts)

    def forward(*args: Any) -> Tensor:
        given, spread = list(args), []
        for (argument, dimension, given_back), gone in places.items():
            width = given[argument].shape[dimension]
            kept = torch.tensor([i for i in range(width) if i not in gone], dtype=torch.long)
            given[argument] = given[argument].index_select(dimension, kept)
            if given_back:
                spread.append((dimension, width, kept))
        output: Tensor = small(*given)
        for dimension, width, kept in spread:
            if output.shape[dimension] == len(kept):
                shape = list(output.shape)
                shape[dimension] = width
                output = output.new_zeros(shape).index_copy(dimension, kept, output)
        return output

    vars(layer)["forward"] = forward


def _restricted(layer: nn.Module, name: str, cuts: Iterable[Cut]) -> nn.Module:
    """A copy of a module whose parameters are those of the kept channels."""
    small = copy.deepcopy(layer)
    for cut in cuts:
        part = small.get_submodule(cut.layer[len(name) + 1 :])
        place = _TENSOR.fullmatch(cut.side)
        dimensions = {"out": 0, "both": 0, "in": 1}
        for own, tensor in (
            *part.named_parameters(recurse=False),
            *part.named_buffers(recurse=False),
        ):
            dimension = dimensions.get(cut.side)
            if place is not None:
                dimension = int(place[2]) if place[1] == own else None
            if dimension is None or dimension >= tensor.ndim or tensor.ndim == 0:
                continue
            if cut.side == "in" and own != "weight":
                continue
            # Blocks of a grouped convolution share the columns of its weight.
            gone = {i % tensor.shape[dimension] for i in cut.indices}
            kept = [i for i in range(tensor.shape[dimension]) if i not in gone]
            tensor.data = tensor.data.index_select(dimension, torch.tensor(kept))
        counts = vars(part)
        if isinstance(part, nn.GroupNorm):
            # Groups of channels that go as a whole are not there any more.
            part.num_groups = _groups_left(layer.get_submodule(cut.layer[len(name) + 1 :]), cut)
        if "normalized_shape" in counts:
            counts["normalized_shape"] = (counts["normalized_shape"][-1] - len(cut.indices),)
        if "num_channels" in counts:
            counts["num_channels"] -= len(cut.indices)
    return small


def _groups_left(whole: nn.Module, cut: Cut) -> int:
    """How many groups of a GroupNorm keep a channel."""
    assert isinstance(whole, nn.GroupNorm)
    size = whole.num_channels // whole.num_groups
    return len({i // size for i in range(whole.num_channels) if i not in set(cut.indices)})


def _dimension(layer: nn.Module, values: Tensor) -> int:
    """The dimension over a layer's channels: 1 of convolutions and BatchNorm, else the last."""
    return 1 if isinstance(layer, PER_CHANNEL) else values.ndim - 1


def _is_of_maps(layer: nn.Module) -> bool:
    """Whether a normalisation reads maps, with the channels in dimension 1."""
    return isinstance(layer, nn.GroupNorm) or type(layer).__name__.endswith("2d")
