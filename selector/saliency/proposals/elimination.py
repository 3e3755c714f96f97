r"""Greedy backward elimination by the least-squares error that is left once the rest is refitted.

With H the inverse of the covariance of the channels that are left, and B the products of the
weights that read them, eliminating channel c and refitting the others costs

.. math:: \mathrm{tr}\,(H_{cc}^{-1} B_{cc})

A channel that several inputs stand for has a block of H and B, else single numbers. Afterwards
H and B are those of the others, by an update of the block's rank:

.. math:: H \leftarrow H - h H_{cc}^{-1} h^T, \qquad B \leftarrow (I - u e^T) B (I - e u^T)

with h the columns of c in H and u = h H_cc^{-1}. The updates of a panel of channels are kept and
made as one product, so that the work, about 3 channels^3 multiplications a consumer, is that of
matrix products. Groups of one shape are eliminated side by side: of narrow ones, most of the time
is that of calling. Wide ones are eliminated in single precision, in two thirds of the time.

Source:
    Hassibi and Stork, NIPS 1992 (OBS); for channels, arXiv 2403.12983 (OSSCAR) and arXiv
    2302.04089 (ZipLM).
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from selector.saliency.proposals.covariance import View

PANEL = 48
"""Channels at least that are eliminated between two updates of whole matrices."""
PANELS = 16
"""Panels at most: in wide groups, moving what is left costs more than the updates by vectors."""


def eliminate(views: Sequence[View], channels: int, count: int) -> list[int]:
    """The channels that go, in their order; the costs of all consumers are added.

    Args:
        views: Every consumer's view of the group.
        channels: Channels of the group.
        count: How many go.
    """
    return eliminate_together([views], channels, count)[0]


def eliminate_together(
    groups: Sequence[Sequence[View]], channels: int, count: int
) -> list[list[int]]:
    """`eliminate` of several groups at once.

    Args:
        groups: Of every group, all consumers' views; of the same widths in every group.
        channels: Channels of each group.
        count: How many go from each.
    """
    panel = min(max(PANEL, channels // PANELS), count)
    alike: dict[int, list[Sequence[View]]] = {}
    for views in zip(*groups, strict=True):
        alike.setdefault(len(views[0].inputs), []).append(views)
    consumers = [_Consumers(views, channels, panel) for views in alike.values()]
    every = torch.arange(len(groups))
    left = torch.arange(channels).repeat(len(groups), 1)
    gone: list[Tensor] = []
    while True:
        alive = torch.ones_like(left, dtype=torch.bool)
        for _ in range(min(panel, count - len(gone))):
            costs = torch.stack([some.costs() for some in consumers]).sum(0)
            place = costs.masked_fill_(~alive, torch.inf).argmin(1)
            alive[every, place] = False
            gone.append(left[every, place])
            for some in consumers:
                some.eliminate(place)
        if len(gone) == count:
            return torch.stack(gone, 1).tolist() if gone else [[] for _ in groups]
        left = left[alive].reshape(len(groups), -1)
        for some in consumers:
            some.shrink(alive)


class _Consumers:
    """H and B of consumers with the same number of inputs, of every group; but for the panel.

    The diagonal blocks are up to date. Both are symmetric: columns are read, and kept, as rows.
    """

    def __init__(self, views: Sequence[Sequence[View]], channels: int, panel: int) -> None:
        """Start with all channels.

        Args:
            views: Consumer by consumer, those of all groups.
            channels: Channels of a group.
            panel: Channels that are eliminated before `shrink`.
        """
        flat = [view for of_groups in views for view in of_groups]
        self.consumers = len(views)
        self.width = len(flat[0].inputs) // channels
        self.panel = panel * self.width
        self.every = torch.arange(len(flat))
        self.inverse = torch.stack([view.inverse for view in flat])
        self.outputs = torch.stack([view.outputs for view in flat])
        self.own_inverse = self._blocks(self.inverse)
        self.own_outputs = self._blocks(self.outputs)
        self._clear()

    def _blocks(self, matrices: Tensor) -> Tensor:
        """The block of every channel, shape (views, channels, width, width)."""
        size = self.width
        table = matrices.reshape(len(matrices), matrices.shape[1] // size, size, -1, size)
        return table.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).clone()

    def _clear(self) -> None:
        views, inputs, _ = self.inverse.shape
        self.kept = self.inverse.new_empty(3, views, self.panel, inputs)
        self.filled = 0
        channels = inputs // self.width
        self._kept_of = self.kept.view(3, views, self.panel, channels, self.width)
        self._inverse_of, self._outputs_of = (
            matrices.view(views, channels, self.width, inputs)
            for matrices in (self.inverse, self.outputs)
        )

    def costs(self) -> Tensor:
        """What eliminating each channel costs now, all consumers' together, (groups, channels)."""
        if self.width == 1:
            each = (self.own_outputs / self.own_inverse)[..., 0, 0]
        else:
            solved = torch.linalg.solve(self.own_inverse, self.own_outputs)
            each = solved.diagonal(dim1=2, dim2=3).sum(2)
        total: Tensor = each.clamp_min_(0).reshape(self.consumers, -1, each.shape[1]).sum(0)
        return total

    def eliminate(self, place: Tensor) -> None:
        """Eliminate each group's channel at a place; its numbers mean nothing afterwards."""
        place = place.repeat(self.consumers)
        roots, spread, lost = self.kept[:, :, : self.filled]
        # What the panel has changed of these channels' rows.
        root_at, spread_at, lost_at = self._kept_of[:, self.every, : self.filled, place].unbind(1)
        row = torch.baddbmm(self._inverse_of[self.every, place], root_at.mT, roots, alpha=-1)
        read = torch.baddbmm(self._outputs_of[self.every, place], spread_at.mT, lost, alpha=-1)
        read.baddbmm_(lost_at.mT, spread, alpha=-1)
        root, share = _solved(self.own_inverse[self.every, place], row)
        own = torch.baddbmm(read, self.own_outputs[self.every, place], share, alpha=-0.5)
        into = slice(self.filled, self.filled + self.width)
        torch.stack((root, share, own), out=self.kept[:, :, into])
        self.filled += self.width
        self._lower(root, share, own)
        # The channel's own block is zero now; nothing divides by it.
        self.own_inverse[self.every, place] = self._one

    @cached_property
    def _one(self) -> Tensor:
        return torch.eye(self.width, dtype=self.inverse.dtype)

    def _lower(self, *rows: Tensor) -> None:
        """Make the diagonal blocks' updates."""
        table = (len(self.every), self.width, -1, self.width)
        root, share, own = (r.reshape(table).permute(0, 2, 3, 1) for r in rows)
        if self.width == 1:
            self.own_inverse.addcmul_(root, root, value=-1)
            self.own_outputs.addcmul_(share, own, value=-2)
            return
        both = share @ own.mT
        self.own_inverse -= root @ root.mT
        self.own_outputs -= both + both.mT

    def shrink(self, alive: Tensor) -> None:
        """Make the updates of the panel, and drop the channels that went."""
        alive = alive.repeat(self.consumers, 1)
        inputs = alive.repeat_interleave(self.width, 1)
        places = [each.nonzero()[:, 0] for each in inputs]
        kept = self.kept.new_empty(*self.kept.shape[:3], len(places[0]))
        for number, place in enumerate(places):
            kept[:, number] = self.kept[:, number].index_select(2, place)
        roots, spread, lost = kept
        self.inverse, self.outputs = _parts(self.inverse, places), _parts(self.outputs, places)
        self.inverse.baddbmm_(roots.mT, roots, alpha=-1)
        both = torch.bmm(spread.mT, lost)
        self.outputs.sub_(both).sub_(both.mT)
        shape = len(alive), -1, self.width, self.width
        self.own_inverse = self.own_inverse[alive].reshape(shape)
        self.own_outputs = self.own_outputs[alive].reshape(shape)
        self._clear()


def _solved(block: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows over the root of each block, and over the block."""
    if block.shape[-1] == 1:
        return rows / block.sqrt(), rows / block
    factor = torch.linalg.cholesky(block)
    root: Tensor = torch.linalg.solve_triangular(factor, rows, upper=False)
    return root, torch.cholesky_solve(rows, factor)


def _parts(matrices: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Rows and columns of every matrix; numpy takes them in half the time."""
    found = matrices.new_empty(len(matrices), len(places[0]), len(places[0]))
    for matrix, place, into in zip(matrices.numpy(), places, found.numpy(), strict=True):
        matrix.take(place.numpy(), 0).take(place.numpy(), 1, out=into, mode="clip")
    return found
