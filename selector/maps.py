"""Whole feature maps as matrices: their ranks, and what one channel adds to all the others.

Dear: decompositions for every image and channel. Measured only when a metric asks for it by name.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def mean_rank(maps: Sequence[Tensor]) -> Tensor:
    """Ranks of the maps, summed over images and consumers.

    Args:
        maps: One tensor for each consumer, (images, channels, height, width).

    Returns:
        Shape (channels,), float64.
    """
    ranks = [torch.linalg.matrix_rank(planes.float()).double().sum(0) for planes in maps]
    return torch.stack(ranks).sum(0)


def independence(maps: Sequence[Tensor]) -> Tensor:
    """Fall of the nuclear norm when one channel is set to zero, summed over images.

    The matrix of an image has one row for each channel: its maps at all consumers, flattened.
    Nuclear norms come from eigenvalues of whichever Gram matrix is smaller, so the work is
    channels x min(channels, positions)^3 for each image.

    Args:
        maps: One tensor for each consumer, (images, channels, height, width).

    Returns:
        Shape (channels,), float64.
    """
    rows = torch.cat([planes.double().flatten(2) for planes in maps], 2)
    return torch.stack([_fall_of_nuclear_norm(matrix) for matrix in rows]).sum(0)


def _fall_of_nuclear_norm(matrix: Tensor) -> Tensor:
    channels, positions = matrix.shape
    whole = torch.linalg.matrix_norm(matrix, "nuc")
    if positions < channels:
        gram = matrix.T @ matrix
        grams = (gram - torch.outer(row, row) for row in matrix)
    else:
        gram = matrix @ matrix.T
        grams = (_without(gram, channel) for channel in range(channels))
    left = [torch.linalg.eigvalsh(g).clamp_min(0).sqrt().sum() for g in grams]
    return torch.sub(whole, torch.stack(left))


def _without(gram: Tensor, channel: int) -> Tensor:
    kept = [other for other in range(len(gram)) if other != channel]
    index = torch.tensor(kept, device=gram.device)
    return gram.index_select(0, index).index_select(1, index)
