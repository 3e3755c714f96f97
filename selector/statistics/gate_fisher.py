"""What the channels of a set do to the loss together: first and second order, with all pairs.

A metric scores channels one by one; of a set, the sum of scores says nothing about channels that
cancel or repeat each other. With t_nc the sum over positions of activation x gradient of channel c
in image n, removing the set S changes the loss of image n by -t_nS to first order, t_nS being the
sum of t_nc over S; the Fisher estimate of the second order is the mean of t_nS^2 / 2. Both follow,
for every set, from the mean of t_n and of its outer product with itself.

Groups of more than `WIDE` channels keep no matrix of pairs but the images' effects themselves, from
which everything follows exactly; with more than `ROWS` images, images are added up into `ROWS` rows
with random signs, which leaves every mean square unbiased, with a relative error of about
(2 / ROWS)^(1/2) = 6 %.

Compensated removal leaves the channels' means in place: there t_nc - abar_c g_nc stands for t_nc,
with abar_c the mean activation and g_nc the gradient summed over positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from selector.typing import Matrix

MODES = ("plain", "compensated")

WIDE = 1024
"""Channels up to which the products of every two are summed."""

ROWS = 512
"""Rows of effects that are kept of a wider group."""


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
    def squares(self) -> Matrix:
        """Mean square of every channel's effect, shape (channels,): the diagonal of `second`."""
        found: Matrix = np.maximum(np.diag(self.second), 0.0)
        return found

    @property
    def scale(self) -> Matrix:
        """Root of the mean square of every channel's effect, shape (channels,)."""
        roots: Matrix = np.sqrt(self.squares)
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


class WidePairs(Pairs):
    """The same from rows of effects, without a matrix of all pairs."""

    def __init__(self, first: Matrix, rows: Matrix) -> None:
        """Means of t_nc, and rows whose products sum to the means of t_nc t_nd."""
        object.__setattr__(self, "first", first)
        object.__setattr__(self, "rows", rows)

    rows: Matrix
    """Shape (rows, channels)."""

    @cached_property
    def second(self) -> Matrix:
        """Mean over images of t_nc t_nd; (channels, channels) numbers, made when asked for."""
        found: Matrix = self.rows.T @ self.rows
        return found

    def of_sets(self, chosen: Matrix) -> tuple[Matrix, Matrix]:
        """Mean of t_nS and of its square for some sets."""
        return chosen @ self.first, np.square(chosen @ self.rows.T).sum(1)

    def without(self, channels: Sequence[int]) -> "WidePairs":
        """Those of the other channels."""
        kept = np.setdiff1d(np.arange(len(self.first)), list(channels))
        return WidePairs(self.first[kept], self.rows[:, kept])

    @property
    def squares(self) -> Matrix:
        """Mean square of every channel's effect, shape (channels,)."""
        found: Matrix = np.square(self.rows).sum(0)
        return found


@dataclass
class PairSums:
    """Running sums over images of what every two channels of a group do together."""

    products: Tensor | None
    """Sums of t t, t g and g g, shape (3, channels, channels), float64; None in a wide group."""
    rows: Tensor
    """In a wide group, t and g of images, shape (2, at most ROWS, channels), float64."""
    signs: torch.Generator
    images: int = 0

    @classmethod
    def of(cls, channels: int, device: torch.device) -> "PairSums":
        """Empty sums."""
        rows = torch.zeros(2, 0, channels, dtype=torch.float64, device=device)
        products = rows.new_zeros(3, channels, channels) if channels <= WIDE else None
        return cls(products, rows, torch.Generator().manual_seed(0))

    def add(self, taylor: Tensor, gradient: Tensor) -> None:
        """Add a batch.

        Args:
            taylor: t_nc, shape (images, channels), float64.
            gradient: g_nc, same shape.
        """
        if self.products is not None:
            pairs = ((taylor, taylor), (taylor, gradient), (gradient, gradient))
            for total, (one, other) in zip(self.products, pairs, strict=True):
                total += one.T @ other
            return
        # Whole numbers are drawn one by one: the size of the batches changes nothing.
        signs = 2.0 * torch.randint(2, (len(taylor), 1), generator=self.signs) - 1.0
        rows = torch.stack([taylor, gradient]) * signs.to(taylor)
        free = ROWS - self.rows.shape[1]
        self.rows = torch.cat([self.rows, rows[:, :free]], 1)
        if len(taylor) > free:
            index = torch.arange(self.images + free, self.images + len(taylor)) % ROWS
            self.rows.index_add_(1, index.to(rows.device), rows[:, free:])
        self.images += len(taylor)

    def means(
        self, images: int, taylor: Tensor, gradient: Tensor, activation: Tensor
    ) -> Mapping[str, Pairs]:
        """The pairs of both modes.

        Args:
            images: How many there were.
            taylor: Mean of t_nc, shape (channels,).
            gradient: Mean of g_nc.
            activation: Mean activation of every channel, over images and positions.
        """
        left = (taylor - activation * gradient).numpy()
        if self.products is None:
            effects, slopes = (self.rows / images**0.5).cpu()
            return {
                "plain": WidePairs(taylor.numpy(), effects.numpy()),
                "compensated": WidePairs(left, (effects - activation * slopes).numpy()),
            }
        plain, crossed, slopes = (self.products / images).cpu()
        mixed = crossed * activation
        second = plain - mixed - mixed.T + activation[:, None] * slopes * activation
        return {
            "plain": Pairs(taylor.numpy(), plain.numpy()),
            "compensated": Pairs(left, second.numpy()),
        }
