"""Every two filters of a group compared: scalar products and distances."""

import torch
from torch import Tensor

LARGE = 2**33
"""Multiplications from which on single precision does the work, and double precision the sums."""

BLOCK = 1024
"""Rows multiplied at once in single precision, and twice as many columns."""


def filter_products(rows: Tensor) -> Tensor:
    """Scalar product of every two filters.

    In float64. Where channels^2 x fan-in passes `LARGE`, filters around their mean are multiplied
    in float32, block by block, and added up in float64: products are then right to about 1e-6 of
    the squared distances from the mean, also those of filters that are nearly alike.

    Args:
        rows: Shape (channels, fan-in).

    Returns:
        Shape (channels, channels), float64, symmetric to the last bit: two channels alone are
        equally far from each other.
    """
    if len(rows) ** 2 * rows.shape[1] <= LARGE:
        weight = rows.double()
        products = weight @ weight.T
        return (products + products.T) / 2
    mean = rows.mean(0, dtype=torch.float64)
    products = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    along = products.new_zeros(len(rows))
    for columns, part_of_mean in zip(
        torch.split(rows, 2 * BLOCK, 1), torch.split(mean, 2 * BLOCK), strict=True
    ):
        centred = columns.double() - part_of_mean
        along += centred @ part_of_mean
        part = centred.float()
        for start in range(0, len(rows), BLOCK):
            stop = start + BLOCK
            # Blocks on and above the diagonal; those below mirror them.
            products[start:stop, start:] += part[start:stop] @ part[start:].T
    upper = products.triu(1)
    products = upper + upper.T + torch.diag(products.diagonal())
    # (a + m)(b + m) = a b + a m + b m + m m, for what was left out around the mean.
    return products + (along[:, None] + along[None, :]) + mean.square().sum()


def distances_of(products: Tensor) -> Tensor:
    r"""Euclidean distance of every two filters, from their scalar products.

    .. math:: \lVert w_c - w_j \rVert^2 = w_c^2 + w_j^2 - 2 w_c w_j

    Args:
        products: As `filter_products` gives them.

    Returns:
        Shape (channels, channels), float64.
    """
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0)
    # What is left of rounding on the diagonal would be a distance of a filter to itself.
    return distances.fill_diagonal_(0).sqrt()
