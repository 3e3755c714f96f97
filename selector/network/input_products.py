"""Products of every two inputs of a layer, from sampled positions, in a precision that lasts."""

import torch
from torch import Tensor

POSITIONS = 64
"""Positions of a map that are read."""

EXACT = 2048
"""Inputs of a layer up to which those of one channel are kept apart."""

RIDGE = 0.1
"""Noise that every channel is taken to have of its own, as a share of its variance: a refit cannot
lean on differences that a few images show by chance."""

CONSTANT = 1e-10
"""Share of the mean square below which the variance of an input is rounding."""

LEAST = 1e-30
"""Variance below which squares in single precision have no digits left."""


def sampled(values: Tensor) -> Tensor:
    """At most `POSITIONS` positions of every map, the same ones in every image.

    Args:
        values: Shape (..., positions).
    """
    positions = values.shape[-1]
    if positions <= POSITIONS:
        return values
    # Drawn, not evenly spaced: a step that divides the rows would read a few columns alone.
    drawn = torch.randperm(positions, generator=torch.Generator().manual_seed(0))
    return values[..., drawn[:POSITIONS].sort().values.to(values.device)]


def rows_by_channel(values: Tensor) -> tuple[Tensor, int]:
    """Inputs as the rows of one matrix for each block of a grouped convolution.

    Args:
        values: Shape (images, blocks, channels, inputs of each, positions).

    Returns:
        Shape (blocks, rows, inputs); and how many inputs of one channel are taken for positions of
        one map, where they are more than `EXACT` in all.
    """
    _, blocks, channels, each, _ = values.shape
    if channels * each > EXACT:
        return values.permute(1, 0, 3, 4, 2).reshape(blocks, -1, channels), each
    return values.permute(1, 0, 4, 2, 3).reshape(blocks, -1, channels * each), 1


def products_with_constant(rows: Tensor) -> Tensor:
    """Products of every two columns, and of each with a column of ones, summed over rows.

    Args:
        rows: Shape (blocks, rows, inputs).

    Returns:
        Shape (blocks, inputs + 1, inputs + 1), float64; the ones come last.
    """
    # Around their means, or single precision would lose a spread that is small next to them.
    means = rows.mean(1, keepdim=True)
    rows = rows - means
    sums = rows.sum(1, keepdim=True, dtype=torch.float64)
    means = means.double()
    shifts = sums.mT @ means
    count = rows.shape[1]
    products = torch.bmm(rows.transpose(1, 2), rows).double()
    products = products + shifts + shifts.mT + count * means.mT @ means
    sums = sums + count * means
    corner = sums.new_full((len(rows), 1, 1), count)
    return torch.cat([torch.cat([products, sums], 1), torch.cat([sums.mT, corner], 1)], 2)


def centred(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `products_with_constant` gave of one block, around the means.

    Args:
        moments: Shape (inputs + 1, inputs + 1).

    Returns:
        Covariance times rows, shape (inputs, inputs); means; and standard deviations times the root
        of the rows, zero for an input that is constant.
    """
    means = moments[-1, :-1] / moments[-1, -1]
    squares = moments.diagonal()[:-1]
    covariance = moments[:-1, :-1] - torch.outer(means, means) * moments[-1, -1]
    variances = covariance.diagonal()
    least = (CONSTANT * squares).clamp_min(LEAST * float(moments[-1, -1]))
    scale = torch.where(variances > least, variances, 0.0).clamp_min(0).sqrt()
    return covariance, means, scale


def ridged_correlation(covariance: Tensor, scale: Tensor, ridge: float = RIDGE) -> Tensor:
    """A covariance in units of every input's standard deviation, with the ridge on its diagonal.

    Args:
        covariance: Shape (inputs, inputs).
        scale: Standard deviations; an input of none has no correlation with others.
        ridge: See `RIDGE`.
    """
    outer = torch.outer(scale, scale)
    found = torch.where(outer > 0, covariance / outer, 0.0)
    found.diagonal().fill_(1 + ridge)
    return found
