r"""What removing a set costs by second-order views that read no labels, whoever proposed the set.

With H the inverse of the covariance of a group's channels at a consumer, and B the products of the
weights that read them (`covariance.py`), removing the set S and refitting the others leaves

.. math:: \mathrm{tr}\,(H_{SS}^{-1} B_{SS})

which is what greedy elimination adds up. The joint effect of a set on the softened outputs is that
of `joint.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selector.saliency.proposals.covariance import views_of
from selector.statistics.channel_statistics import Signals
from selector.statistics.gate_fisher import Pairs
from selector.typing import Channels, Matrix

ERRORS = ("residual", "fisher_residual", "softened_second")
"""Squared error of the consumers' outputs after a refit, as a share of their variance; the same in
nats, weighted by the softened outputs' gradients (K-FAC); the set's joint effect on the softened
outputs without a refit, to second order, in nats."""
NEEDS = ("forward", "pairs", "input_products", "gradient_products")
"""What must be measured, with gradients of the softened outputs."""


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
        plain, weighted = views_of(signals), views_of(signals, by_gradient=True)
        inverses = [torch.cholesky_inverse(torch.linalg.cholesky(view.inputs)) for view in plain]
        both = [(one.outputs, two.outputs) for one, two in zip(plain, weighted, strict=True)]
        return cls(inverses, both, signals.channels, signals.pairs["plain"])

    def of_sets(self, sets: Sequence[Channels]) -> Matrix:
        """The `ERRORS` of some sets, shape (sets, 3)."""
        chosen = np.zeros((len(sets), self.channels))
        for row, channels in enumerate(sets):
            chosen[row, list(channels)] = 1.0
        second = self.pairs.of_sets(chosen)[1] / 2
        refitted = np.array([self._refitted(channels) for channels in sets]).reshape(-1, 2)
        return np.concatenate([refitted, second[:, None]], 1)

    def _refitted(self, channels: Channels) -> tuple[float, float]:
        """What a refit leaves of a set: of the outputs' variance, and in nats."""
        share = nats = 0.0
        gone = torch.tensor(channels)
        for inverse, outputs in zip(self.inverses, self.outputs, strict=True):
            width = len(inverse) // self.channels
            rows = (gone[:, None] * width + torch.arange(width)).flatten()
            own = torch.cholesky_inverse(torch.linalg.cholesky(inverse[rows][:, rows]))
            one, two = (float((own * matrix[rows][:, rows]).sum()) for matrix in outputs)
            share, nats = share + max(0.0, one), nats + max(0.0, two)
        return share, nats
