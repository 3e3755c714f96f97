"""The weights of a group: producers' filters, what consumers read them with, normalisation."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from selector.network.attention import is_packed_attention
from selector.network.bare import tensor_place
from selector.network.groups import Group, Slice
from selector.network.layers import (
    CONVOLUTION,
    NORMALISATION,
    input_dimension,
    output_dimension,
    weight_blocks,
    weight_of,
    weight_positions,
)
from selector.statistics.channel_statistics import ConsumerInput, MeasuringPoint
from selector.statistics.statistic import STATISTICS


def bare_parameters(model: nn.Module, groups: Iterable[Group]) -> list[nn.Parameter]:
    """Parameters outside of layers that hold channels of the groups, such as embeddings."""
    places = [
        (model.get_submodule(part.layer), place[0])
        for group in groups
        for part in group.running
        if (place := tensor_place(part.side)) is not None
    ]
    found = [getattr(module, name) for module, name in places]
    parameters = {id(one): one for one in found if isinstance(one, nn.Parameter)}
    return [one for one in parameters.values() if one.is_floating_point()]


def producer_rows(model: nn.Module, group: Group, values: Callable[[str], Tensor]) -> Tensor:
    """Rows of the producers' matrices, laid side by side for each channel, on the CPU."""
    blocks = []
    for part in group.running:
        if part.side == "out":
            layer = model.get_submodule(part.layer)
            matrix = weight_blocks(layer, values(part.layer)).flatten(0, 1).flatten(1).cpu()
            matrix = _picked(matrix, _by_channel(part.channels, part.indices))
            blocks.append(matrix.view(group.channels, -1))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)


def _picked(matrix: Tensor, rows: Sequence[int]) -> Tensor:
    """A copy of some rows, the fastest way where these are all of them in their order."""
    if len(rows) == len(matrix) and rows == list(range(len(matrix))):
        return matrix.clone(memory_format=torch.contiguous_format)
    return matrix[torch.tensor(rows)]


def _by_channel(channels: Sequence[int], values: Sequence[int]) -> list[int]:
    """A layer's positions in the order of the group's channels; every channel has as many."""
    if all(one < other for one, other in pairwise(channels)):
        return list(values)
    return [value for _, value in sorted(zip(channels, values, strict=True))]


def consumer_weights(model: nn.Module, group: Group) -> list[Tensor]:
    """Each consumer's weights that read a group, (channels, inputs of each, weights an input)."""
    found = []
    for part in _read_by(group):
        matrix = _input_rows(model.get_submodule(part.layer), weight_of(model, part.layer))
        rows = _picked(matrix, [part.indices[place] for place in _order(part)])
        found.append(rows.view(group.channels, -1, matrix.shape[1]))
    return found


def _read_by(group: Group) -> list[Slice]:
    """What the group's consumers read of it."""
    return [part for part in group.running if part.side == "in"]


def _order(part: Slice) -> list[int]:
    """Places of a layer's positions in the order of the group's channels."""
    return _by_channel(part.channels, range(len(part.indices)))


def consumer_inputs(
    group: Group, weights: Sequence[Tensor], point: MeasuringPoint | None
) -> Iterator[ConsumerInput]:
    """Each consumer's side of a group, with the statistics of its inputs that were measured.

    Args:
        group: The group.
        weights: Of every consumer, as `consumer_weights` gives them.
        point: What was measured where the consumers read; None where nothing was.
    """
    for part, weight in zip(_read_by(group), weights, strict=True):
        order = torch.tensor(_order(part))
        measured = _of_layer(part.layer, point)
        yield ConsumerInput(
            weight=weight,
            statistics={
                name: values[order].view(group.channels, -1)
                for name, values in measured.items()
                if not STATISTICS[name].by_consumer
            },
            products={
                name: values for name, values in measured.items() if STATISTICS[name].by_consumer
            },
        )


def _of_layer(layer: str, point: MeasuringPoint | None) -> Mapping[str, Tensor]:
    """The statistics that were kept for this layer apart, by name."""
    if point is None:
        return {}
    end = f" of {layer}"
    measured = point.statistics.items()
    return {name.removesuffix(end): values for name, values in measured if name.endswith(end)}


def _input_rows(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weights that read each input of a layer, (inputs, weights per input), on the CPU."""
    # An input of a grouped convolution is read by the outputs of its own block alone.
    return weight_blocks(layer, weight.detach().cpu()).transpose(1, 2).flatten(0, 1).flatten(1)


def weights_removed(model: nn.Module, group: Group) -> float:
    """Weights of convolutions and linear layers that go with one channel, from all the layers."""
    left: dict[str, float] = {}
    for part in group.slices:
        layer = model.get_submodule(part.layer)
        if not (isinstance(layer, CONVOLUTION | nn.Linear) or is_packed_attention(layer)):
            continue
        dimension = input_dimension(layer) if part.side == "in" else output_dimension(layer)
        width = weight_of(model, part.layer).shape[dimension]
        gone = len(weight_positions(layer, part.side, part.indices)) / group.channels
        # A layer that reads and writes the channel loses a row and a column, which cross.
        left[part.layer] = left.get(part.layer, 1.0) * (1 - gone / width)
    return sum((1 - share) * weight_of(model, name).numel() for name, share in left.items())


def normalisation_scale(model: nn.Module, group: Group) -> Tensor | None:
    """Sum of abs(gamma) over the BatchNorm layers between, (channels,); None without any."""
    total = torch.zeros(group.channels, dtype=torch.float64)
    found = False
    for part in group.running:
        layer = model.get_submodule(part.layer)
        if isinstance(layer, NORMALISATION) and layer.affine:
            scale = layer.weight.detach().abs().double().cpu()[list(part.indices)]
            total.index_add_(0, torch.tensor(part.channels), scale)
            found = True
    return total if found else None
