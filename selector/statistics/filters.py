"""Every two filters of a group compared: scalar products and distances."""

import torch
from torch import Tensor

LARGE = 2**33
"""Multiplications from which on single precision does the work, and double precision the sums."""

BLOCK = 1024
"""Rows multiplied at once in single precision, and twice as many columns."""


def filter_products(rows: Tensor) -> Tensor:
    """Scalar product of every two filters.

    In float64. Where channels^2 x fan-in passes `LARGE`, blocks of columns are multiplied in
    float32 and added up in float64: products are then right to about 1e-6 of the filters' norms.

    Args:
        rows: Shape (channels, fan-in).

    Returns:
        Shape (channels, channels), float64, symmetric to the last bit: two channels alone are
        equally far from each other.
    """
    if not is_large(rows):
        weight = rows.double()
        products = weight @ weight.T
        return (products + products.T) / 2
    products = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for columns in torch.split(rows, 2 * BLOCK, 1):
        part = columns.float()
        for start in range(0, len(rows), BLOCK):
            stop = start + BLOCK
            # Blocks on and above the diagonal; those below mirror them.
            products[start:stop, start:] += part[start:stop] @ part[start:].T
    upper = products.triu(1)
    return upper + upper.T + torch.diag(products.diagonal())


def filter_distances(rows: Tensor) -> Tensor:
    r"""Euclidean distance of every two filters, from one matrix product.

    .. math:: \lVert w_c - w_j \rVert^2 = w_c^2 + w_j^2 - 2 w_c w_j

    Args:
        rows: Shape (channels, fan-in).

    Returns:
        Shape (channels, channels), float64.
    """
    if is_large(rows):
        # Around their mean, filters that are nearly alike lose fewer digits in single precision.
        rows = rows - rows.mean(0, dtype=torch.float64).to(rows.dtype)
    products = filter_products(rows)
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0)
    # What is left of rounding on the diagonal would be a distance of a filter to itself.
    return distances.fill_diagonal_(0).sqrt()


def is_large(rows: Tensor) -> bool:
    """Whether single precision does the work."""
    return len(rows) ** 2 * rows.shape[1] > LARGE
