"""How sure a prediction is: distance to the training decisions, and prediction intervals.

Intervals come from cross-fitting: every network is predicted by boosters that have not seen it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.cluster import KMeans
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits

from selector.learning.description import DistributionNumbers
from selector.learning.table import DAMAGE_OFFSET
from selector.typing import Matrix

CENTRES = 64
FOLDS = 5
CONSTANT = 1e-6
"""Spread below which a number is taken to be the same in all training decisions."""
INSIDE = 0.99
"""Share of the decisions on networks not seen that count as inside."""


@dataclass(frozen=True, eq=False)
class TrainingDistribution:
    """Where the training decisions lie: centres of their facts in units of their spread."""

    mean: Matrix
    spread: Matrix
    centres: Matrix
    """Shape (centres, numbers)."""
    radius: float
    """Distance to the nearest centre within which nearly all training decisions lie."""

    @classmethod
    def fit(cls, facts: Matrix, networks: Sequence[str], seed: int) -> "TrainingDistribution":
        """From the facts of the training decisions, shape (decisions, numbers), and their networks.

        The radius is that of decisions on networks that the centres have not seen.
        """
        names = np.array(networks)
        far = np.empty(len(facts))
        for train, left_out in GroupKFold(min(FOLDS, len(np.unique(names)))).split(
            facts, groups=names
        ):
            far[left_out] = cls._centred(facts[train], seed).distance(facts[left_out])
        radius = float(np.quantile(far, INSIDE))
        return replace(cls._centred(facts, seed), radius=max(radius, 1e-6))

    @classmethod
    def _centred(cls, facts: Matrix, seed: int) -> "TrainingDistribution":
        mean, spread = facts.mean(0), facts.std(0)
        spread[spread < CONSTANT] = 1.0  # Says nothing of what is usual: left in its own units.
        points = (facts - mean) / spread
        count = min(CENTRES, len(np.unique(points, axis=0)))
        with threadpool_limits(1):  # Sums of several threads have other last digits.
            found = KMeans(count, n_init=1, random_state=seed).fit(points)
        return cls(mean, spread, np.asarray(found.cluster_centers_, np.float64), 1.0)

    def distance(self, facts: Matrix) -> Matrix:
        """Distance to the nearest centre over the radius, shape (decisions,); outside above 1."""
        distances: Matrix = np.linalg.norm(self.gaps(facts), axis=1) / self.radius
        return distances

    def gaps(self, facts: Matrix) -> Matrix:
        """From the nearest centre to every decision, in spreads, shape (decisions, numbers)."""
        points = (facts - self.mean) / self.spread
        offsets = points[:, None] - self.centres
        nearest = np.linalg.norm(offsets, axis=2).argmin(1)
        found: Matrix = offsets[np.arange(len(facts)), nearest]
        return found

    def as_numbers(self) -> DistributionNumbers:
        """As it is saved."""
        return DistributionNumbers(
            mean=tuple(self.mean.tolist()),
            spread=tuple(self.spread.tolist()),
            centres=tuple(map(tuple, self.centres.tolist())),
            radius=self.radius,
        )

    @classmethod
    def of_numbers(cls, numbers: DistributionNumbers) -> "TrainingDistribution":
        """Undo `as_numbers`."""
        mean, spread, centres = map(np.array, (numbers.mean, numbers.spread, numbers.centres))
        return cls(mean, spread, centres, numbers.radius)


LEVELS = (0.05, 0.95)
"""Quantiles of the errors: the bounds of a 90 % interval."""
BINS = 5


@dataclass(frozen=True, eq=False)
class Intervals:
    """Quantiles of the errors of predicted log damages, for several sizes of the prediction."""

    edges: Matrix
    """Between the bins of predictions, ascending, shape (bins - 1,)."""
    quantiles: Matrix
    """Shape (bins, 2)."""

    @classmethod
    def learnt(cls, predicted: Matrix, true: Matrix) -> "Intervals":
        """From log damages as predicted without the network, and as they were."""
        edges = np.quantile(predicted, np.linspace(0, 1, BINS + 1)[1:-1])
        bins = np.searchsorted(edges, predicted)
        errors = true - predicted
        everywhere = np.quantile(errors, LEVELS)
        rows = [
            np.quantile(errors[bins == b], LEVELS) if (bins == b).sum() >= 20 else everywhere
            for b in range(BINS)
        ]
        return cls(edges, np.array(rows))

    def around(self, logs: Matrix) -> Matrix:
        """90 % intervals of the loss changes in nats, shape (predictions, 2)."""
        found = logs[:, None] + self.quantiles[np.searchsorted(self.edges, logs)]
        bounds: Matrix = np.exp(found) - DAMAGE_OFFSET
        return bounds
