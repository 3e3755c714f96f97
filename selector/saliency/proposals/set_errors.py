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
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class SetErrors:
    """The errors that any set of a group's channels leaves."""

    inverses: Sequence[Tensor]
    """H of every view."""
    outputs: Sequence[tuple[Tensor, Tensor]]
    """B of every view: for the outputs' squared error, and by their gradients."""
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
        inverses = [view.inverse for view in plain]
        both = [(one.outputs, two.outputs) for one, two in zip(plain, weighted, strict=True)]
        return cls(inverses, both, signals.channels, signals.pairs["plain"])

    def of_sets(self, sets: Sequence[Channels]) -> Matrix:
        """The `ERRORS` of some sets, shape (sets, 3); quicker where one holds another."""
        chosen = np.zeros((len(sets), self.channels))
        for row, channels in enumerate(sets):
            chosen[row, list(channels)] = 1.0
        second = self.pairs.of_sets(chosen)[1] / 2
        refitted = np.zeros((len(sets), 2))
        for inverse, outputs in zip(self.inverses, self.outputs, strict=True):
            width = len(inverse) // self.channels
            inputs = torch.from_numpy(chosen.repeat(width, 1))
            of_view = _side_by_side if len(inverse) <= NARROW else _by_chains
            refitted += of_view(inverse, outputs, inputs).clamp_min(0).numpy()
        return np.concatenate([refitted, second[:, None]], 1)


def _side_by_side(inverse: Tensor, outputs: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """What a refit leaves of some sets, all at once: H beyond a set is taken for the identity.

    Args:
        inverse: H.
        outputs: B of every kind.
        chosen: Shape (sets, inputs), one where an input belongs to the set, else zero.

    Returns:
        Shape (sets, kinds of B).
    """
    own = inverse * chosen[:, :, None] * chosen[:, None]
    own.diagonal(dim1=1, dim2=2).add_(1 - chosen)
    left = torch.cholesky_inverse(torch.linalg.cholesky(own))
    left.diagonal(dim1=1, dim2=2).sub_(1 - chosen)
    return left.flatten(1) @ torch.stack([matrix.flatten() for matrix in outputs], 1)


def _by_chains(inverse: Tensor, outputs: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """The same set by set, each from the one before it in its chain.

    In single precision: 2e-5 at most is lost where one channel of 2,048 is left, else 1e-6.
    """
    found = chosen.new_zeros(len(chosen), len(outputs))
    inverse, outputs = inverse.float(), [matrix.float() for matrix in outputs]
    for chain in chains(chosen.numpy() > 0):
        steps = chosen[chain].flip(0).cumsum(0).flip(0)
        # The earlier an input comes in, the more steps hold it.
        order = steps[0].argsort(descending=True, stable=True)[: int(chosen[chain[-1]].sum())]
        ends = chosen[chain].sum(1).int().tolist()
        found[chain] = _along(inverse, outputs, order, ends)
    return found


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


def _along(
    inverse: Tensor, outputs: Sequence[Tensor], order: Tensor, ends: Sequence[int]
) -> Tensor:
    """What a refit leaves of the first inputs of an order, of each of several numbers of them."""
    own, *read = (_taken(matrix, order) for matrix in (inverse, *outputs))
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


def _taken(matrix: Tensor, order: Tensor) -> Tensor:
    """Rows and columns in an order; numpy takes them in half the time."""
    return torch.from_numpy(matrix.numpy().take(order.numpy(), 0).take(order.numpy(), 1))


def _product(one: Tensor, other: Tensor) -> float:
    """Sum of the products of two matrices' numbers, without a third matrix."""
    return float(np.einsum("ij,ij->", one.numpy(), other.numpy()))
