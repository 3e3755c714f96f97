"""What the channels of a set do to the loss together: first and second order, with all pairs.

A metric scores channels one by one; of a set, the sum of scores says nothing about channels that
cancel or repeat each other. With t_nc the sum over positions of activation x gradient of channel c
in image n, removing the set S changes the loss of image n by -t_nS to first order, t_nS being the
sum of t_nc over S; the Fisher estimate of the second order is the mean of t_nS^2 / 2. Both follow,
for every set, from the mean of t_n and of its outer product with itself.

Compensated removal leaves the channels' means in place: there t_nc - abar_c g_nc stands for t_nc,
with abar_c the mean activation and g_nc the gradient summed over positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selector.typing import Matrix

MODES = ("plain", "compensated")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Moments of the first-order effects of a group's channels over images, in one mode."""

    first: Matrix
    """Mean over images of t_nc, shape (channels,), in nats."""
    second: Matrix
    """Mean over images of t_nc t_nd, shape (channels, channels), in nats squared."""

    def of_sets(self, chosen: Matrix) -> tuple[Matrix, Matrix]:
        """Mean of t_nS and of its square for some sets.

        Args:
            chosen: Shape (sets, channels), one where a channel belongs to the set, else zero.

        Returns:
            Two arrays of shape (sets,).
        """
        squares: Matrix = np.einsum("sc,sc->s", chosen @ self.second, chosen)
        return chosen @ self.first, np.maximum(squares, 0.0)

    def without(self, channels: Sequence[int]) -> "Pairs":
        """Those of the other channels."""
        kept = np.setdiff1d(np.arange(len(self.first)), list(channels))
        return Pairs(self.first[kept], self.second[np.ix_(kept, kept)])

    @property
    def scale(self) -> Matrix:
        """Root of the mean square of every channel's effect, shape (channels,)."""
        roots: Matrix = np.sqrt(np.maximum(np.diag(self.second), 0.0))
        return roots

    def correlations(self) -> Matrix:
        """The pairs above the diagonal, row by row, in units of both channels' scales."""
        rows, columns = np.triu_indices(len(self.first), 1)
        products = self.scale[rows] * self.scale[columns]
        found: Matrix = self.second[rows, columns] / np.maximum(products, 1e-300)
        return np.clip(found, -1.0, 1.0)

    @classmethod
    def of_correlations(cls, first: Matrix, scale: Matrix, correlations: Matrix) -> "Pairs":
        """Undo `correlations`."""
        rows, columns = np.triu_indices(len(first), 1)
        table = np.eye(len(first))
        table[rows, columns] = table[columns, rows] = correlations
        return cls(first, table * np.outer(scale, scale))


def pair_sums(taylor: Tensor, gradient: Tensor) -> Tensor:
    """Products of every two channels, summed over a batch's images.

    Args:
        taylor: t_nc, shape (images, channels).
        gradient: g_nc, same shape.

    Returns:
        Sums of t t, t g and g g, shape (3, channels, channels).
    """
    return torch.stack([taylor.T @ taylor, taylor.T @ gradient, gradient.T @ gradient])


def pairs_of(
    sums: Tensor, taylor: Tensor, gradient: Tensor, activation: Tensor
) -> Mapping[str, Pairs]:
    """The pairs of both modes, from means over images.

    Args:
        sums: `pair_sums` over the number of images, shape (3, channels, channels).
        taylor: Mean of t_nc, shape (channels,).
        gradient: Mean of g_nc.
        activation: Mean activation of every channel, over images and positions.
    """
    plain, crossed, slopes = sums
    mean = activation[:, None]
    left = plain - crossed * activation - (crossed * activation).T + mean * slopes * activation
    return {
        "plain": Pairs(taylor.numpy(), plain.numpy()),
        "compensated": Pairs((taylor - activation * gradient).numpy(), left.numpy()),
    }
