"""From the summed predictions of single groups to what a whole pruning loses: learnt factors.

Losses of single groups do not add up: some make each other worse, and repair takes back some of
others. Between the sum that is predicted before the first cut and what whole prunings of networks
not learnt from really lost lies a factor, whose quantiles are kept here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selector.errors import SelectorError

LEAST, MOST = 1 / 64, 64.0
"""Bounds of one pruning's factor: one that lost nothing, or everything, says no more than that."""
QUANTILES = (0.05, 0.5, 0.95)
LEAST_SUM = 0.005
"""Nats that a predicted sum counts as at least: of less, no factor can be told."""


@dataclass(frozen=True)
class Composing:
    """Factors between predicted sums and real losses: 5 %, median, 95 % over whole prunings."""

    low: float
    middle: float
    high: float

    def __post_init__(self) -> None:
        """Refuse factors that are none.

        Raises:
            SelectorError: Not positive, or not ascending.
        """
        if not 0 < self.low <= self.middle <= self.high < float("inf"):
            raise SelectorError("composing needs three ascending factors above 0")

    def of(self, total: float) -> tuple[float, float, float]:
        """What a predicted sum comes to, in nats: the lower end, the middle, the upper end."""
        known = max(total, LEAST_SUM)
        return known * self.low, known * self.middle, known * self.high

    @classmethod
    def learnt(cls, factors: Sequence[float]) -> "Composing":
        """From the factors of whole prunings.

        Args:
            factors: Real loss over predicted sum, one for each pruning.
        """
        logs = np.log(np.clip(np.array(factors, np.float64), LEAST, MOST))
        low, middle, high = np.exp(np.quantile(logs, QUANTILES)).tolist()
        return cls(low, middle, high)
