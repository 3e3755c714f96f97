"""Kinds of layers, their dimensions and widths."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from selector.errors import SelectorError
from selector.typing import Side

CONVOLUTION = nn.modules.conv._ConvNd
NORMALISATION = nn.modules.batchnorm._BatchNorm
INSTANCE_NORMALISATION = nn.modules.instancenorm._InstanceNorm


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a convolution maps every channel to itself, and so stands between."""
    return (
        isinstance(layer, CONVOLUTION)
        and layer.groups == layer.in_channels == layer.out_channels > 1
    )


def is_grouped(layer: nn.Module) -> bool:
    """Whether a convolution has groups that can lose the same offset each, and stay alike."""
    return (
        isinstance(layer, CONVOLUTION)
        and layer.groups > 1
        and not layer.transposed
        and not is_depthwise(layer)
    )


def channel_dimension(layer: nn.Module, values: Tensor) -> int:
    """The dimension of a layer's inputs or outputs that runs over their channels."""
    return 1 if isinstance(layer, CONVOLUTION) else values.ndim - 1


def input_dimension(layer: nn.Module) -> int:
    """The dimension of `layer.weight` that runs over the layer's inputs."""
    return 0 if isinstance(layer, CONVOLUTION) and layer.transposed else 1


def output_dimension(layer: nn.Module) -> int:
    """The dimension of `layer.weight` that runs over the layer's outputs."""
    return 1 - input_dimension(layer)


def weight_of(model: nn.Module, layer: str) -> nn.Parameter:
    """The weight of a layer, by the layer's qualified name."""
    return cast(nn.Parameter, model.get_submodule(layer).weight)


def layer_width(layer: nn.Module, side: Side) -> int:
    """How many positions a layer has on one side."""
    if isinstance(layer, CONVOLUTION):
        return layer.in_channels if side == "in" else layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features if side == "in" else layer.out_features
    if isinstance(layer, NORMALISATION | INSTANCE_NORMALISATION):
        return layer.num_features
    if isinstance(layer, nn.PReLU):
        return layer.num_parameters
    raise SelectorError(f"a {type(layer).__name__} has no channels that can be removed")


def positions_per_group(layer: nn.Module, side: Side) -> int:
    """How many positions a layer has on one side in each group of its convolution."""
    groups = layer.groups if isinstance(layer, CONVOLUTION) and is_grouped(layer) else 1
    return layer_width(layer, side) // groups


def same_in_every_group(layer: nn.Module, side: Side, indices: Sequence[int]) -> bool:
    """Whether these positions lie at the same offsets in every group of a grouped convolution."""
    per_group = positions_per_group(layer, side)
    groups = layer_width(layer, side) // per_group
    return len(set(indices)) == groups * len({index % per_group for index in indices})
