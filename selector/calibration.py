"""Errors on networks not learnt from: intervals of loss changes, and how arms' errors go together.

Both come from the same cross-fitting: every network is predicted by boosters that have not seen it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selector.learning import DAMAGE_OFFSET
from selector.pairs import Matrix

LEVELS = (0.05, 0.95)
"""Quantiles of the errors: nine of ten loss changes lie between."""
BINS = 5
DRAWS = 256
"""Decisions whose errors are kept."""


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
        """Loss changes in nats between which nine of ten lie, shape (predictions, 2)."""
        found = logs[:, None] + self.quantiles[np.searchsorted(self.edges, logs)]
        bounds: Matrix = np.exp(found) - DAMAGE_OFFSET
        return bounds


@dataclass(frozen=True, eq=False)
class JointErrors:
    """Errors of all arms' predicted costs in the same decisions: shape (decisions, arms)."""

    draws: Matrix

    @classmethod
    def learnt(cls, errors: Matrix, seed: int) -> "JointErrors":
        """From errors of shape (decisions, arms), NaN where an arm was not there."""
        whole = errors[~np.isnan(errors).any(1)]
        source = whole if len(whole) else np.nan_to_num(errors)
        chance = np.random.default_rng(seed)
        rows = chance.permutation(len(source))[:DRAWS]
        return cls(source[rows])

    def portfolio(
        self,
        cost: Mapping[str, float],
        proposals: Mapping[str, tuple[int, ...]],
        arms: Sequence[str],
        first: str,
    ) -> tuple[str, ...]:
        """Arms in an order such that the best of the first k is expected to be good, for every k.

        Greedy: after the first, each is the one that lowers the expected cost of the best so far
        the most, over the kept draws of errors. Arms that propose the same channels are one, with
        the mean of their errors.

        Args:
            cost: Arm -> predicted cost.
            proposals: Arm -> the channels that it would remove.
            arms: All arms, in the order of the draws.
            first: Arm to begin with.
        """
        sets: dict[tuple[int, ...], list[str]] = {}
        for arm in [first, *sorted(cost, key=cost.__getitem__)]:
            sets.setdefault(proposals[arm], [])
            if arm not in sets[proposals[arm]]:
                sets[proposals[arm]].append(arm)
        columns = dict(zip(arms, self.draws.T, strict=True))
        names = [found[0] for found in sets.values()]
        outcomes = np.array(
            [sum(cost[arm] + columns[arm] for arm in found) / len(found) for found in sets.values()]
        )
        order, best = [0], outcomes[0]
        left = list(range(1, len(names)))
        while left:
            costs = np.minimum(best, outcomes[left]).sum(1)
            order.append(left.pop(int(costs.argmin())))
            best = np.minimum(best, outcomes[order[-1]])
        return tuple(names[number] for number in order)
