r"""Greedy backward elimination by the least-squares error that is left once the rest is refitted.

With H the inverse of the covariance of the channels that are left, and B the products of the
weights that read them, eliminating channel c and refitting the others costs

.. math:: \mathrm{tr}\,(H_{cc}^{-1} B_{cc})

A channel that several inputs stand for has a block of H and B, else single numbers. Afterwards
H and B are those of the others, by an update of the block's rank:

.. math:: H \leftarrow H - h H_{cc}^{-1} h^T, \qquad B \leftarrow (I - u e^T) B (I - e u^T)

with h the columns of c in H and u = h H_cc^{-1}. The updates of `PANEL` channels are kept and made
as one product, so that the work, about 3 channels^3 multiplications a consumer, is that of matrix
products.

Source:
    Hassibi and Stork, NIPS 1992 (OBS); for channels, arXiv 2403.12983 (OSSCAR) and arXiv
    2302.04089 (ZipLM).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from selector.saliency.proposals.covariance import View

PANEL = 48
"""Channels that are eliminated between two updates of whole matrices."""


def eliminate(views: Sequence[View], channels: int, count: int) -> list[int]:
    """The channels that go, in their order; the costs of all consumers are added.

    Args:
        views: Every consumer's view of the group.
        channels: Channels of the group.
        count: How many go.
    """
    left = torch.arange(channels)
    consumers = [_Consumer(view, channels) for view in views]
    gone: list[int] = []
    while len(gone) < count:
        alive = torch.ones(len(left), dtype=torch.bool)
        for _ in range(min(PANEL, count - len(gone))):
            costs = torch.stack([consumer.costs() for consumer in consumers]).sum(0)
            place = int(costs.masked_fill(~alive, torch.inf).argmin())
            alive[place] = False
            gone.append(int(left[place]))
            for consumer in consumers:
                consumer.eliminate(place)
        left = left[alive]
        for consumer in consumers:
            consumer.shrink(alive)
    return gone


class _Consumer:
    """H and B of one consumer, up to date but for the panel; their diagonal blocks are exact."""

    def __init__(self, view: View, channels: int) -> None:
        self.width = len(view.inputs) // channels
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(view.inputs))
        self.outputs = view.outputs
        self.own_inverse = self._blocks(self.inverse)
        self.own_outputs = self._blocks(self.outputs)
        self._clear()

    def _blocks(self, matrix: Tensor) -> Tensor:
        """The block of every channel, shape (channels, width, width)."""
        size = self.width
        table = matrix.reshape(len(matrix) // size, size, -1, size)
        return table.diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()

    def _clear(self) -> None:
        nothing = self.inverse.new_zeros(3, len(self.inverse), PANEL * self.width)
        self.roots, self.spread, self.lost = nothing
        self.filled = 0

    def costs(self) -> Tensor:
        """What eliminating each channel costs now, shape (channels,)."""
        if self.width == 1:
            single: Tensor = self.own_outputs[:, 0, 0] / self.own_inverse[:, 0, 0]
            return single.clamp_min(0)
        solved: Tensor = torch.linalg.solve(self.own_inverse, self.own_outputs)
        return solved.diagonal(dim1=1, dim2=2).sum(1).clamp_min(0)

    def eliminate(self, place: int) -> None:
        """Eliminate the channel at a place; its own numbers mean nothing afterwards."""
        rows = slice(place * self.width, (place + 1) * self.width)
        roots, spread, lost = (m[:, : self.filled] for m in (self.roots, self.spread, self.lost))
        column = self.inverse[:, rows] - roots @ roots[rows].T
        read = self.outputs[:, rows] - spread @ lost[rows].T - lost @ spread[rows].T
        factor = torch.linalg.cholesky(self.own_inverse[place])
        root = torch.linalg.solve_triangular(factor, column.T, upper=False).T
        share = torch.cholesky_solve(column.T, factor).T
        own = read - share @ self.own_outputs[place] / 2
        into = slice(self.filled, self.filled + self.width)
        self.roots[:, into], self.spread[:, into], self.lost[:, into] = root, share, own
        self.filled += self.width
        root, share, own = (m.reshape(-1, self.width, self.width) for m in (root, share, own))
        self.own_inverse -= root @ root.mT
        both = share @ own.mT
        self.own_outputs -= both + both.mT
        # The channel's own block is zero now; nothing divides by it.
        self.own_inverse[place] = torch.eye(self.width, dtype=torch.float64)

    def shrink(self, alive: Tensor) -> None:
        """Make the updates of the panel, and drop the channels that went."""
        kept = alive.repeat_interleave(self.width)
        roots, spread, lost = (m[kept, : self.filled] for m in (self.roots, self.spread, self.lost))
        self.inverse = self.inverse[kept][:, kept] - roots @ roots.T
        both = spread @ lost.T
        self.outputs = self.outputs[kept][:, kept] - both - both.T
        self.own_inverse, self.own_outputs = self.own_inverse[alive], self.own_outputs[alive]
        self._clear()
