"""What the selector predicts for one decision, and the joint errors that order its shortlist."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selector.learning.features import distinct
from selector.typing import Matrix


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the selector says of one decision."""

    trusted: str
    """The arm to follow: the predicted best, or the single best where the gain is not credible."""
    runner_up: str | None
    """The next-best arm that proposes other channels; None where all propose the same."""
    fell_back: bool
    """Whether the single best is followed although another arm was predicted to be better."""
    gain: float
    """Predicted cost of the single best minus that of the predicted best."""
    gain_error: float
    """Its standard error over the jackknife of training networks."""
    out_of_distribution: float
    """Distance to the training decisions, over that within which 99 % of those of a network not
    learnt from lie: above one, the decision is outside, and the single best is followed."""
    proposals: Mapping[str, tuple[int, ...]]
    """Arm -> the channels that it would remove."""
    cost: Mapping[str, float]
    """Arm -> predicted cost, the predicted best's being zero: its normalised regret, and the
    selector's `damage_weight_` times the log of its damage."""
    loss_change_nats: Mapping[str, float]
    """Arm -> predicted loss change of its proposal."""
    loss_change_interval: Mapping[str, tuple[float, float]]
    """Arm -> 90 % interval of the loss change, from the errors on networks not learnt from."""
    portfolio: tuple[str, ...]
    """Arms in the order in which the oracle should measure them, so that the best of the first k
    is good for every k; no two propose the same channels. The trusted arm comes first."""

    @property
    def outside(self) -> bool:
        """Whether the decision lies outside what was learnt from."""
        return self.out_of_distribution > 1

    def shortlist(self, count: int | None) -> list[str]:
        """The trusted arm, then those that complement it best; never two with the same channels."""
        order = [*self.portfolio, *sorted(self.cost, key=self.cost.__getitem__)]
        return distinct(self.proposals, order)[:count]


DRAWS = 256
"""Decisions whose errors are kept."""


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
