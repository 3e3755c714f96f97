r"""What removing a set costs by second-order views that read no labels, whoever proposed the set.

With H the inverse of the covariance of a group's channels at a consumer, and B the products of the
weights that read them (`covariance.py`), removing the set S and refitting the others leaves

.. math:: \mathrm{tr}\,(H_{SS}^{-1} B_{SS})

which is what greedy elimination adds up. The joint effect of a set on the softened outputs is that
of `joint.py`.

Most sets are steps of one order, each within the next. With X the inverse of H_SS, that of a
larger set of channels S and T follows from it:

.. math:: R = L^{-1} (-H_{TS} X, \; I), \qquad L L^T = H_{TT} - H_{TS} X H_{ST}, \qquad
    X \leftarrow X + R^T R

so that all steps of an order cost as much as the largest of them.

Beyond `WIDE` inputs even one inverse an order takes minutes. There, B is read through some random
columns: with B = F F^T, Gaussian G and m columns, the error of every step of an order is that of
one Cholesky factor L of H in this order, summed over the rows of the set:

.. math:: \mathrm{tr}\,(H_{SS}^{-1} B_{SS}) \approx
    \tfrac{1}{m} \sum_{i \in S} \lVert (L^{-1} F G)_i \rVert^2

which is right in the mean, with a relative error of about (2 / (m r))^(1/2), r being the rank that
the error is spread over (Girard, 1989). All sets are read through the same columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selector.saliency.proposals.covariance import merged, views_of
from selector.statistics.channel_statistics import Signals
from selector.statistics.gate_fisher import Pairs
from selector.typing import Channels, Matrix

ERRORS = ("residual", "fisher_residual", "softened_second")
"""Squared error of the consumers' outputs after a refit, as a share of their variance; the same in
nats, weighted by the softened outputs' gradients (K-FAC); the set's joint effect on the softened
outputs without a refit, to second order, in nats."""
NEEDS = ("forward", "pairs", "input_products", "gradient_products")
"""What must be measured, with gradients of the softened outputs."""

NARROW = 64
"""Inputs up to which calling costs more than computing: all sets are priced at once."""
WIDE = 1024
"""Inputs of a consumer beyond which errors are estimated."""
COLUMNS = 128
"""Random columns through which they are."""
RIDGES = (1e-9, 1e-7, 1e-5, 1e-3, 1.0)
"""What B's diagonal gains for its Cholesky factor, in shares of its largest number: the first that
is enough."""


@dataclass(frozen=True, eq=False)
class SetErrors:
    """The errors that any set of a group's channels leaves."""

    views: Sequence["ViewErrors"]
    channels: int
    pairs: Pairs

    @classmethod
    def of(cls, signals: Signals) -> "SetErrors":
        """From what was measured with gradients of the softened outputs.

        Raises:
            SelectorError: The signals lack a statistic of `NEEDS`, or one is not finite.
        """
        plain = merged(views_of(signals))
        weighted = merged(views_of(signals, by_gradient=True))
        views = [
            ViewErrors(one.inverse, (one.outputs, two.outputs))
            for one, two in zip(plain, weighted, strict=True)
        ]
        return cls(views, signals.channels, signals.pairs["plain"])

    def of_sets(self, sets: Sequence[Channels]) -> Matrix:
        """The `ERRORS` of some sets, shape (sets, 3); quicker where one holds another."""
        chosen = np.zeros((len(sets), self.channels))
        for row, channels in enumerate(sets):
            chosen[row, list(channels)] = 1.0
        second = self.pairs.of_sets(chosen)[1] / 2
        refitted = np.zeros((len(sets), 2))
        for view in self.views:
            width = len(view.inverse) // self.channels
            inputs = torch.from_numpy(chosen.repeat(width, 1))
            refitted += view.of_sets(inputs).clamp_min(0).numpy()
        return np.concatenate([refitted, second[:, None]], 1)


@dataclass(frozen=True, eq=False)
class ViewErrors:
    """What one consumer loses by sets of its inputs."""

    inverse: Tensor
    """H, shape (inputs, inputs)."""
    outputs: Sequence[Tensor]
    """B of every kind: for the outputs' squared error, and by their gradients."""

    def of_sets(self, chosen: Tensor) -> Tensor:
        """What a refit leaves of some sets, as it is quickest at this width.

        Args:
            chosen: Shape (sets, inputs), one where an input belongs to the set, else zero.

        Returns:
            Shape (sets, kinds of B).
        """
        if len(self.inverse) <= NARROW:
            return self._side_by_side(chosen)
        along = self._along if len(self.inverse) <= WIDE else self._estimated
        return _by_chains(chosen, along)

    def _side_by_side(self, chosen: Tensor) -> Tensor:
        """All sets at once: H beyond a set is taken for the identity."""
        own = self.inverse * chosen[:, :, None] * chosen[:, None]
        own.diagonal(dim1=1, dim2=2).add_(1 - chosen)
        left = torch.cholesky_inverse(torch.linalg.cholesky(own))
        left.diagonal(dim1=1, dim2=2).sub_(1 - chosen)
        outputs = torch.stack([matrix.flatten() for matrix in self.outputs], 1)
        return torch.mm(left.flatten(1), outputs)

    def _along(self, order: Tensor, ends: Sequence[int]) -> Tensor:
        """What a refit leaves of the first inputs of an order, of each of several numbers of them.

        In single precision: 2e-5 at most is lost where one channel of 1,024 is left, else 1e-6.
        """
        own, *read = (_taken(matrix, order) for matrix in (self._single, *self._single_outputs))
        left = torch.zeros_like(own)
        found, begin = [], 0
        for end in ends:
            known, new = slice(begin), slice(begin, end)
            slopes = (left[known, known] @ own[known, new]).neg_()
            factor = torch.linalg.cholesky(own[new, new] + own[new, known] @ slopes)
            rows = torch.cat([slopes.T, torch.eye(end - begin, dtype=own.dtype)], 1)
            root = torch.linalg.solve_triangular(factor, rows, upper=False)
            left[:end, :end].addmm_(root.T, root)
            found.append([_product(left[:end, :end], matrix[:end, :end]) for matrix in read])
            begin = end
        return torch.tensor(found, dtype=torch.float64)

    def _estimated(self, order: Tensor, ends: Sequence[int]) -> Tensor:
        """The same with B read through random columns."""
        factor = torch.linalg.cholesky(_taken(self._single, order))
        rows = torch.linalg.solve_triangular(factor, self._columns[order], upper=False)
        squares = rows.double().square_().reshape(len(rows), -1, COLUMNS).sum(2)
        return torch.stack([squares[:end].sum(0) for end in ends])

    @cached_property
    def _single(self) -> Tensor:
        return self.inverse.float()

    @cached_property
    def _single_outputs(self) -> list[Tensor]:
        return [matrix.float() for matrix in self.outputs]

    @cached_property
    def _columns(self) -> Tensor:
        """Random columns of every kind, side by side."""
        return torch.cat([_random_columns(matrix) for matrix in self.outputs], 1)


def _random_columns(outputs: Tensor) -> Tensor:
    """Columns whose products with themselves are those of B in the mean, single precision."""
    loaded = outputs.to(torch.float64, copy=True)
    largest = loaded.diagonal().max().clamp_min(1e-30)
    for share in RIDGES:  # Of few images, B has no full rank, but for rounding.
        loaded.diagonal().add_(share * largest)
        factor, failed = torch.linalg.cholesky_ex(loaded)
        if not bool(failed.any()):
            break
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(outputs), COLUMNS, generator=generator, dtype=loaded.dtype)
    return torch.mm(factor, drawn / COLUMNS**0.5).float()


def _by_chains(chosen: Tensor, along: Callable[[Tensor, Sequence[int]], Tensor]) -> Tensor:
    """Set by set, each from the one before it in its chain.

    Args:
        chosen: Shape (sets, inputs), one where an input belongs to the set, else zero.
        along: Inputs in an order, and several numbers of its first ones -> what a refit leaves of
            these, shape (numbers, kinds of B).
    """
    found: dict[int, Tensor] = {}
    for chain in chains(chosen.numpy() > 0):
        steps = chosen[chain].flip(0).cumsum(0).flip(0)
        # The earlier an input comes in, the more steps hold it.
        order = steps[0].argsort(descending=True, stable=True)[: int(chosen[chain[-1]].sum())]
        ends = chosen[chain].sum(1).int().tolist()
        found.update(zip(chain, along(order, ends), strict=True))
    return torch.stack([found[number] for number in range(len(chosen))])


def chains(chosen: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Sets in as few chains as a greedy search finds; in a chain, each set holds the one before.

    Args:
        chosen: Shape (sets, channels), whether a channel belongs to the set.
    """
    found: list[list[int]] = []
    for number in np.argsort(chosen.sum(1), kind="stable").tolist():
        ends = chosen[[chain[-1] for chain in found]].reshape(-1, chosen.shape[1])
        held = ~(ends & ~chosen[number]).any(1)
        if held.any():
            found[int((held * ends.sum(1)).argmax())].append(number)
        else:
            found.append([number])
    return found


def _taken(matrix: Tensor, order: Tensor) -> Tensor:
    """Rows and columns in an order; numpy takes them in half the time."""
    return torch.from_numpy(matrix.numpy().take(order.numpy(), 0).take(order.numpy(), 1))


def _product(one: Tensor, other: Tensor) -> float:
    """Sum of the products of two matrices' numbers, without a third matrix."""
    return float(np.einsum("ij,ij->", one.numpy(), other.numpy()))
