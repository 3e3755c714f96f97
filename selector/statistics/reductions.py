"""What a quantity at every position of a channel's map is reduced to, per image and over images.

The order of reduction decides what a metric means. Here: over the positions of one image first
(the inputs of all consumers, or the outputs of all producers, count as positions of one channel),
then abs, square or root, then the mean over images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = {"cpu": 2**17, "cuda": 2**26}
"""Elements reduced at once: as many as stay in a core's cache, or as fill a GPU."""

ROWS_AT_ONCE = 2**24
"""Weights that are held in double precision at once."""


@dataclass(frozen=True)
class Moments:
    """A quantity p at positions x of images n, reduced in six ways; each of shape (channels,)."""

    sum: Tensor
    r"""mean_n of sum_x p"""
    absolute: Tensor
    r"""mean_n of sum_x abs(p)"""
    square: Tensor
    r"""mean_n of sum_x p^2"""
    norm: Tensor
    r"""mean_n of (sum_x p^2)^(1/2)"""
    absolute_of_sum: Tensor
    r"""mean_n of abs(sum_x p)"""
    square_of_sum: Tensor
    r"""mean_n of (sum_x p)^2"""


def moments_of_rows(values: Tensor) -> Moments:
    """Moments of a matrix (channels, positions) without images: a channel's weights, say.

    Summed in float64, some rows at a time: a wide layer is never held in double precision.
    """
    step = max(1, ROWS_AT_ONCE // max(1, values.shape[1]))
    parts = [_row_sums(rows.double()) for rows in torch.split(values, step)]
    total, absolute, square = torch.cat(parts, 1)
    return Moments(
        sum=total,
        absolute=absolute,
        square=square,
        norm=square.sqrt(),
        absolute_of_sum=total.abs(),
        square_of_sum=total.square(),
    )


def _row_sums(rows: Tensor) -> Tensor:
    return torch.stack([rows.sum(1), rows.abs().sum(1), rows.square().sum(1)])


def over_images(per_image: Tensor) -> Tensor:
    """Sums over positions (3, images, channels) -> moments summed over images (6, channels)."""
    total, absolute, square = per_image
    rows = (total, absolute, square, square.sqrt(), total.abs(), total.square())
    return torch.stack([row.sum(0) for row in rows])


def sums_over_positions(first: Tensor, second: Tensor | None = None) -> Tensor:
    """Sum, sum of absolutes and sum of squares of a quantity, or of the product of two.

    One sweep through the cache: chunk by chunk, so that no product of whole maps is ever held.

    Args:
        first: Shape (images, inputs, positions).
        second: Factor of the same shape; one by default.

    Returns:
        Shape (3, images, inputs), float64.
    """
    images, inputs, positions = first.shape
    if positions == 1:
        values = first[:, :, 0].double()
        values = values if second is None else values * second[:, :, 0].double()
        return torch.stack([values, values.abs(), values.square()])
    if first.transpose(1, 2).is_contiguous():
        return _sums_over_tokens(first.transpose(1, 2), second)
    out = torch.empty(3, images * inputs, dtype=torch.float64, device=first.device)
    per_row = positions
    if first.is_contiguous() and (second is None or second.is_contiguous()):
        first = first.view(-1, positions)
        second = None if second is None else second.view(-1, positions)
    else:
        per_row, out = inputs * positions, out.view(3, images, inputs)
    step = max(1, CHUNK.get(first.device.type, 2**26) // per_row)
    for start in range(0, len(first), step):
        rows = slice(start, start + step)
        values = precise(first[rows])
        if second is not None:
            values = values * precise(second[rows])
        out[0, rows] = values.sum(-1)
        out[2, rows] = torch.linalg.vector_norm(values, 2, dim=-1)
        # In place where the values are our own: the product is not needed after this.
        out[1, rows] = (values.abs() if second is None else values.abs_()).sum(-1)
    out[2].square_()
    return out.view(3, images, inputs)


def _sums_over_tokens(first: Tensor, second: Tensor | None) -> Tensor:
    """The same where the inputs of a position lie together in memory, as linear layers read them.

    Args:
        first: Shape (images, positions, inputs).
        second: Factor of shape (images, inputs, positions), or None.
    """
    images, positions, inputs = first.shape
    out = torch.empty(3, images, inputs, dtype=torch.float64, device=first.device)
    step = max(1, CHUNK.get(first.device.type, 2**26) // (positions * inputs))
    for start in range(0, images, step):
        rows = slice(start, start + step)
        values = precise(first[rows])
        if second is not None:
            values = values * precise(second[rows].transpose(1, 2))
        out[0, rows] = values.sum(1)
        out[2, rows] = values.square().sum(1)
        out[1, rows] = (values.abs() if second is None else values.abs_()).sum(1)
    return out


def precise(values: Tensor) -> Tensor:
    """Half precision is summed in single; the rest as it is."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
