"""Kinds of layers, their dimensions and widths."""

import math
from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from selector.errors import SelectorError
from selector.network.attention import is_packed_attention
from selector.network.bare import bare_width, is_bare
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
    return isinstance(layer, CONVOLUTION) and layer.groups > 1 and not is_depthwise(layer)


def is_statistics_norm(layer: nn.Module) -> bool:
    """Whether a layer normalises by statistics over its channels: removal changes them.

    LayerNorm, RMSNorm and GroupNorm, also those of other libraries that are alike.
    """
    if isinstance(layer, nn.GroupNorm):
        return True
    shape = getattr(layer, "normalized_shape", None)
    weight = getattr(layer, "weight", None)
    single = isinstance(shape, tuple | list) and len(shape) == 1
    return single and (weight is None or (isinstance(weight, Tensor) and weight.ndim == 1))


def channel_dimension(layer: nn.Module, values: Tensor) -> int:
    """The dimension of a layer's inputs or outputs that runs over their channels."""
    return 1 if isinstance(layer, CONVOLUTION) else values.ndim - 1


def input_dimension(layer: nn.Module) -> int:
    """The dimension of `layer.weight` that runs over the layer's inputs."""
    return 0 if isinstance(layer, CONVOLUTION) and layer.transposed else 1


def output_dimension(layer: nn.Module) -> int:
    """The dimension of `layer.weight` that runs over the layer's outputs."""
    return 1 - input_dimension(layer)


def shared_side(layer: nn.modules.conv._ConvNd) -> Side:
    """The side whose positions share the weight's among the groups of a convolution."""
    return "out" if layer.transposed else "in"


def weight_blocks(layer: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weights by the groups of its convolution.

    Returns:
        Shape (groups, outputs of each, inputs of each, taps); one group where there are none.
    """
    groups = layer.groups if isinstance(layer, CONVOLUTION) else 1
    taps = math.prod(weight.shape[2:])
    parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], taps)
    return parts.transpose(1, 2) if input_dimension(layer) == 0 else parts


def weight_from_blocks(layer: nn.Module, blocks: Tensor, shape: Sequence[int]) -> Tensor:
    """The weights of a layer, of this shape, from what `weight_blocks` gives."""
    parts = blocks.transpose(1, 2) if input_dimension(layer) == 0 else blocks
    return parts.reshape(tuple(shape))


def weight_positions(layer: nn.Module, side: Side, positions: Iterable[int]) -> list[int]:
    """Where positions of a side lie in the weight, in ascending order.

    The groups of a convolution share those of its inputs, one for each offset in a group; the
    groups of a transposed one those of its outputs.
    """
    dimension = input_dimension(layer) if side == "in" else output_dimension(layer)
    size = getattr(layer, reading_weights(layer)[0]).shape[dimension]
    return sorted({position % size for position in positions})


def weight_of(model: nn.Module, layer: str) -> nn.Parameter:
    """The weight of a layer by the layer's name; of a recurrent one, the one that reads inputs."""
    found = model.get_submodule(layer)
    return cast(nn.Parameter, getattr(found, reading_weights(found)[0]))


def reading_weights(layer: nn.Module) -> tuple[str, ...]:
    """Names of the weights that read a layer's inputs; a recurrent one has one a direction."""
    if is_packed_attention(layer):
        return ("in_proj_weight",)
    if isinstance(layer, nn.RNNBase):
        ways = ("", "_reverse") if layer.bidirectional else ("",)
        return tuple(f"weight_ih_l0{way}" for way in ways)
    return ("weight",)


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
    if isinstance(layer, nn.RNNBase):
        return int(layer.input_size if side == "in" else layer.hidden_size)
    if is_packed_attention(layer):
        return layer.in_proj_weight.shape[1 if side == "in" else 0]
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    if is_statistics_norm(layer):
        return int(cast(Sequence[int], layer.normalized_shape)[0])
    raise SelectorError(f"a {type(layer).__name__} has no channels that can be removed")


def positions_per_group(layer: nn.Module, side: Side) -> int:
    """How many positions a layer has on one side in each group of its convolution."""
    groups = layer.groups if isinstance(layer, CONVOLUTION) and is_grouped(layer) else 1
    if isinstance(layer, nn.GroupNorm) and layer.num_groups < layer.num_channels:
        groups = layer.num_groups
    return layer_width(layer, side) // groups


def same_in_every_group(layer: nn.Module, side: Side, indices: Sequence[int]) -> bool:
    """Whether these positions lie at the same offsets in every group of a grouped convolution."""
    per_group = positions_per_group(layer, side)
    groups = layer_width(layer, side) // per_group
    return len(set(indices)) == groups * len({index % per_group for index in indices})


def removable(layer: nn.Module, side: Side) -> bool:
    """Whether positions can be removed exactly from this side of this kind of layer.

    A layer whose parameters are computed from others, by a parametrization of somebody's own,
    cannot lose any; weight and spectral norm are taken off before (see `plain_weights`).
    """
    if parametrize.is_parametrized(layer):
        return False
    if is_bare(side):
        return bare_width(layer, side) is not None
    if isinstance(layer, NORMALISATION | INSTANCE_NORMALISATION) or is_statistics_norm(layer):
        return side == "both"
    if isinstance(layer, nn.RNNBase):
        return side == "in"
    if is_packed_attention(layer):
        return side != "both"
    if "weight" not in dict(layer.named_parameters(recurse=False)):
        return False
    if isinstance(layer, CONVOLUTION):
        if side == "both":
            return is_depthwise(layer)
        return layer.groups == 1 or is_grouped(layer)
    return side != "both" if isinstance(layer, nn.Linear) else isinstance(layer, nn.PReLU)
