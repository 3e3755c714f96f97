"""The headline figures of the evaluation: gaps closed, networks weighing alike, with intervals.

All figures are means over networks of a network's mean cost, so that a network with many groups
counts as much as one with few. Intervals draw networks with replacement; a network recorded on two
sets of images is drawn as one. Where several seeds were judged, costs are means over them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selector.learning.evaluation import SBS_NATS, SELECTOR, VBS, Grid, Judged
from selector.typing import Matrix, Names
from training.evaluation.weights import network_of

DRAWS = 4000


@dataclass(frozen=True, eq=False)
class Headline:
    """Mean costs by network of all methods, from one judgement a seed."""

    judged: Sequence[Judged]

    @property
    def networks(self) -> Sequence[str]:
        """Networks that weigh alike, each once."""
        names: list[str] = np.unique(_bases(self.judged[0].network)).tolist()
        return names

    def costs(self, method: str, measure: str) -> Matrix:
        """Mean cost of a method on every network, shape (networks,).

        Args:
            method: Of the outcomes.
            measure: `nats` or `capped`.
        """
        found = [by_network(one.network, one.outcomes[method].cost(measure)) for one in self.judged]
        mean: Matrix = np.mean(found, 0)
        return mean

    def closed(self, method: str, measure: str) -> float:
        """(SBS - method) / (SBS - VBS): 0 is always one arm, 1 the full oracle."""
        names = (SBS_NATS, method, VBS)
        sbs, own, vbs = (self.costs(name, measure).mean() for name in names)
        return float((sbs - own) / (sbs - vbs))

    def interval(self, method: str, measure: str, than: str = SBS_NATS) -> tuple[float, float]:
        """95 % interval of the share of the gap by which a method is ahead of another.

        The gap itself is that of all networks: a draw without headroom has no share.
        """
        gained = self.costs(than, measure) - self.costs(method, measure)
        gap = float((self.costs(SBS_NATS, measure) - self.costs(VBS, measure)).mean())
        chance = np.random.default_rng(0)
        rows = chance.integers(len(gained), size=(DRAWS, len(gained)))
        low, high = np.quantile(gained[rows].mean(1) / gap, (0.025, 0.975))
        return float(low), float(high)

    def best_rule(self, measure: str) -> str:
        """The unlearnt rule that costs least, in hindsight: the hardest to beat."""
        return min(self.rules, key=lambda name: float(self.costs(name, measure).mean()))

    @property
    def rules(self) -> list[str]:
        """Rules that learn nothing, or one number: a fixed arm, the least of some estimate."""
        return [n for n in self.judged[0].outcomes if n.startswith(("always ", "lowest "))]

    def worse_than(self, other: str, measure: str) -> float:
        """Share of the networks on which the selector costs more than another method."""
        own, theirs = self.costs(SELECTOR, measure), self.costs(other, measure)
        return float((own > theirs + 1e-9).mean())

    def summary(self) -> dict[str, float]:
        """The figures, by the names under which results are kept."""
        found: dict[str, float] = {}
        for measure in ("nats", "capped"):
            low, high = self.interval(SELECTOR, measure)
            found[f"{measure}_closed"] = self.closed(SELECTOR, measure)
            found |= {f"{measure}_closed_low": low, f"{measure}_closed_high": high}
            rule = self.best_rule(measure)
            ahead = self.closed(SELECTOR, measure) - self.closed(rule, measure)
            low, high = self.interval(SELECTOR, measure, rule)
            found[f"{measure}_over_best_rule"] = 100 * ahead
            found[f"{measure}_over_best_rule_low"] = 100 * low
            found[f"{measure}_over_best_rule_high"] = 100 * high
        found["worse_than_sbs_share"] = self.worse_than(SBS_NATS, "nats")
        found["worse_than_sbs_share_capped"] = self.worse_than(SBS_NATS, "capped")
        for size in (2, 3):
            own, fixed = f"selector, verify={size}", f"fixed portfolio of {size} + oracle"
            ahead = self.closed(own, "capped") - self.closed(fixed, "capped")
            found[f"shortlist{size}_over_fixed"] = 100 * ahead
        return found


def _bases(network: Names) -> Names:
    return np.array([network_of(name) for name in network.tolist()])


def by_network(network: Names, cost: Matrix) -> Matrix:
    """Mean costs by network, sorted by name, over the decisions in which a method was measured.

    Args:
        network: Of every decision.
        cost: Of every decision, NaN where the method was not measured.
    """
    _, which = np.unique(_bases(network), return_inverse=True)
    known = ~np.isnan(cost)
    sums = np.bincount(which[known], cost[known], int(which.max()) + 1)
    found: Matrix = sums / np.maximum(1, np.bincount(which[known], minlength=len(sums)))
    return found


def noise_free(grid: Grid, errors: Matrix, draws: int = 64) -> Matrix:
    """What the best arm costs in truth: what an oracle without noise would reach.

    The changes measured are taken for truth plus normal noise of the recorded errors. Of every
    decision, truths are drawn from what the measurements leave open: the arms' changes shrunk
    towards their mean by the share of their variance that is noise, and spread accordingly.

    Args:
        grid: What was measured, (decisions, arms).
        errors: Standard errors of the means of both splits, same shape.
        draws: Of the truths.

    Returns:
        Nats, shape (decisions,): the mean over draws of the least true change.
    """
    measured, noise = grid.both, np.nan_to_num(np.square(errors))
    mean = np.nanmean(measured, 1, keepdims=True)
    left = np.maximum(0.0, np.nanvar(measured, 1, keepdims=True) - noise.mean(1, keepdims=True))
    share = left / np.maximum(left + noise, 1e-30)
    chance = np.random.default_rng(0)
    least = np.zeros(len(measured))
    for _ in range(draws):
        normal = chance.standard_normal(measured.shape)
        truth = mean + share * (measured - mean) + np.sqrt(share * noise) * normal
        least += np.nanmin(truth, 1) / draws
    return least
