"""Sampled rows of a layer's linear problem: the patches it reads and the outputs beside them.

Only the sampled positions are gathered; no map is unfolded as a whole.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from selector.network.layers import CONVOLUTION, weight_blocks, weight_from_blocks


@dataclass(frozen=True)
class Positions:
    """Which output positions of each image are sampled, whatever batch the image comes in.

    One random position in each of equally long stretches of the map: all differ, and they cover it.
    """

    draws: Tensor
    """Uniform numbers in [0, 1), shape (images, positions), float64."""

    @classmethod
    def drawn(cls, images: int, count: int, seed: int) -> "Positions":
        """Draw `count` positions for each image; the same seed gives the same ones."""
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.rand(images, count, generator=generator, dtype=torch.float64))

    def of(self, start: int, stop: int, available: int, device: torch.device) -> Tensor:
        """Positions of the images [start, stop) in a map of `available` positions.

        Returns:
            int64 of shape (images, positions); all positions where there are no more than wanted.
        """
        count = self.draws.shape[1]
        if available <= count:
            every = torch.arange(available)
            return every.expand(stop - start, available).to(device)
        stretch = torch.arange(count, dtype=torch.float64) + self.draws[start:stop]
        return (stretch * (available / count)).long().clamp_(max=available - 1).to(device)


def weight_matrices(layer: nn.Module) -> Tensor:
    """A layer's weights as one matrix for each of its groups.

    Returns:
        Float64 of shape (groups, outputs, inputs): kernel offset-major, then input channel.
    """
    weight = cast(Tensor, layer.weight).detach().double()
    return weight_blocks(layer, weight).transpose(2, 3).flatten(2)


def set_weight_matrices(layer: nn.Module, matrices: Tensor) -> None:
    """Write matrices as `weight_matrices` gives them into the layer, in place."""
    weight = cast(nn.Parameter, layer.weight)
    taps = math.prod(weight.shape[2:])
    parts = matrices.reshape(*matrices.shape[:2], taps, matrices.shape[2] // taps)
    weight.data.copy_(weight_from_blocks(layer, parts.transpose(2, 3), weight.shape))


def rows_of_outputs(layer: nn.Module, outputs: Tensor, images: int) -> int:
    """Number of output positions of one image; each gives an equation for every output.

    Returns:
        0 where the outputs do not run over the images first.
    """
    if isinstance(layer, CONVOLUTION):
        batched = outputs.ndim == len(layer.kernel_size) + 2 and len(outputs) == images
        return math.prod(outputs.shape[2:]) if batched else 0
    vectors = outputs.numel() // max(1, outputs.shape[-1])
    first = len(outputs) if outputs.ndim > 1 else 0
    return vectors // images if first and first % images == 0 else 0


def output_rows(layer: nn.Module, outputs: Tensor, positions: Tensor, order: Tensor) -> Tensor:
    """A layer's outputs at the sampled positions.

    Args:
        layer: A convolution or linear layer.
        outputs: What it gave.
        positions: Shape (images, positions).
        order: Images in the order in which their rows are wanted.

    Returns:
        Shape (images * positions, outputs), float32 or wider.
    """
    images, count = positions.shape
    if isinstance(layer, CONVOLUTION):
        maps = outputs.flatten(2)
        index = positions.unsqueeze(1).expand(-1, maps.shape[1], -1)
        rows = maps.gather(2, index).transpose(1, 2)
    else:
        maps = outputs.reshape(images, -1, outputs.shape[-1])
        rows = maps.gather(1, positions.unsqueeze(2).expand(-1, -1, maps.shape[2]))
    return _wide(rows[order].reshape(images * count, -1))


def input_rows(
    layer: nn.Module, inputs: Tensor, outputs: Tensor, positions: Tensor, order: Tensor
) -> Tensor:
    """What a layer reads to give its outputs at the sampled positions.

    Args:
        layer: A convolution or linear layer.
        inputs: What it was called with.
        outputs: What it gave; of a transposed convolution, its size is not in the inputs.
        positions: Shape (images, positions).
        order: Images in the order in which their rows are wanted.

    Returns:
        Shape (groups, images * positions, inputs), in the order of `weight_matrices`.
    """
    images, count = positions.shape
    if not isinstance(layer, CONVOLUTION):
        maps = inputs.reshape(images, -1, inputs.shape[-1])
        rows = maps.gather(1, positions.unsqueeze(2).expand(-1, -1, maps.shape[2]))
        return _wide(rows[order].reshape(1, images * count, -1))
    size = tuple(inputs.shape[2:])
    # A row of zeros behind the last position stands for all that lies outside of the map.
    flat = inputs.flatten(2).transpose(1, 2)
    flat = nn.functional.pad(flat, (0, 0, 0, 1)).reshape(-1, inputs.shape[1])
    read = _positions_read(layer, size, tuple(outputs.shape[2:]), positions[order])
    first = order * (math.prod(size) + 1)
    rows = flat.index_select(0, (read + first.view(-1, 1, 1)).flatten())
    offsets, groups = read.shape[2], layer.groups
    if groups == 1:
        return _wide(rows.view(1, images * count, -1))
    # Each input's rows next to each other: products of many narrow matrices are far faster so.
    rows = rows.view(images * count, -1).t().contiguous()
    rows = rows.view(offsets, groups, -1, images * count).transpose(0, 1)
    return _wide(rows.reshape(groups, -1, images * count).transpose(1, 2))


class _Geometry(NamedTuple):
    """How a convolution steps over its inputs, for each dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, layer: nn.modules.conv._ConvNd) -> "_Geometry":
        """As the layer runs now: code may have set numbers after it was made, one for all."""
        kernel = tuple(layer.weight.shape[2:])
        return cls(kernel, *(_each(x, len(kernel)) for x in (layer.stride, layer.dilation)))


def _each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    return (value,) * dimensions if isinstance(value, int) else tuple(value)


def _positions_read(
    layer: nn.modules.conv._ConvNd, size: Sequence[int], out: Sequence[int], positions: Tensor
) -> Tensor:
    """Flat input positions that the kernel reads, shape (images, positions, offsets)."""
    if layer.transposed:
        return _table_transposed(layer, tuple(size), tuple(out)).to(positions.device)[positions]
    padded = _padded(tuple(size), _padding(layer), layer.padding_mode)
    steps = _steps(padded.shape)
    kernel, stride, dilation = _Geometry.of(layer)
    base = torch.zeros_like(positions)
    left = positions
    for dimension in reversed(range(len(out))):
        place = left % out[dimension]
        left = left // out[dimension]
        base = base + place * stride[dimension] * steps[dimension]
    offsets = torch.tensor(
        [
            sum(k * d * step for k, d, step in zip(place, dilation, steps, strict=True))
            for place in itertools.product(*map(range, kernel))
        ],
        device=positions.device,
    )
    read = base.unsqueeze(2) + offsets
    return padded.flatten().to(positions.device)[read]


def _padding(layer: nn.modules.conv._ConvNd) -> tuple[int, ...]:
    """What is put before and behind each dimension, the last one first, as the layer pads now.

    The list that a layer keeps of it is of when it was made, and is read for other modes alone.
    """
    if layer.padding_mode != "zeros":
        return tuple(layer._reversed_padding_repeated_twice)
    kernel, _, dilation = _Geometry.of(layer)
    if layer.padding == "same":
        beyond = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        ends = [(both // 2, both - both // 2) for both in beyond]
    else:
        width = 0 if layer.padding == "valid" else cast("int | tuple[int, ...]", layer.padding)
        ends = [(one, one) for one in _each(width, len(kernel))]
    return tuple(width for pair in reversed(ends) for width in pair)


@lru_cache(maxsize=16)
def _padded(size: tuple[int, ...], padding: tuple[int, ...], mode: str) -> Tensor:
    """The flat positions of a map, padded as the layer pads it; beyond zeros: the zero row."""
    zero_row = math.prod(size)
    numbers = torch.arange(zero_row, dtype=torch.float64).view(1, 1, *size)
    if mode == "zeros":
        numbers = nn.functional.pad(numbers, padding, value=zero_row)
    else:
        numbers = nn.functional.pad(numbers, padding, mode=mode)
    return numbers[0, 0].long()


def _table_transposed(
    layer: nn.modules.conv._ConvNd, size: tuple[int, ...], out: tuple[int, ...]
) -> Tensor:
    """For every output position, the input positions that reach it, shape (positions, offsets)."""
    flat, valid = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    kernel, stride, dilation = _Geometry.of(layer)
    padding = cast("tuple[int, ...]", layer.padding)
    for d, (length, step) in enumerate(zip(size, _steps(size), strict=True)):
        place = torch.arange(out[d]).unsqueeze(1) + padding[d]
        place = place - dilation[d] * torch.arange(kernel[d])
        inside = (place % stride[d] == 0) & (place >= 0)
        place = place // stride[d]
        inside &= place < length
        shape = (len(flat) * out[d], flat.shape[1] * kernel[d])
        flat = (flat[:, None, :, None] + (place * step)[None, :, None, :]).reshape(shape)
        valid = (valid[:, None, :, None] & inside[None, :, None, :]).reshape(shape)
    return torch.where(valid, flat, math.prod(size))


def _steps(size: Sequence[int]) -> list[int]:
    """How far apart neighbours along each dimension lie in the flattened map."""
    return [math.prod(size[d + 1 :]) for d in range(len(size))]


def _wide(rows: Tensor) -> Tensor:
    """At least float32, so that sums of half-precision activations are not lost."""
    return rows if rows.dtype == torch.float64 else rows.float()
