"""Evaluation of choices: their cost on images that chose nothing, and the gap they close.

What is chosen by measuring (the VBS, shortlists, portfolios) is chosen on the selection split; all
choices are scored on the evaluation split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selector.learning.regret import CAP, regrets
from selector.learning.table import TrainingTable
from selector.typing import Matrix, Numbers


@dataclass(frozen=True, eq=False)
class Grid:
    """Loss changes of all arms in all decisions, (decisions, arms); NaN where there is none."""

    selection: Matrix
    evaluation: Matrix

    @classmethod
    def of(cls, table: TrainingTable) -> "Grid":
        """From a table of rows."""
        shape = (len(table.network), len(table.arms))
        selection, evaluation = np.full((2, *shape), np.nan)
        selection[table.seen.decision, table.seen.arm] = table.selection
        evaluation[table.seen.decision, table.seen.arm] = table.evaluation
        return cls(selection, evaluation)

    @property
    def both(self) -> Matrix:
        """Mean of both splits: the measure on training networks."""
        mean: Matrix = (self.selection + self.evaluation) / 2
        return mean

    def measured(self, wanted: Sequence[Sequence[int]] | None = None) -> Numbers:
        """The best of some arms of every decision on the selection split; of all by default."""
        if wanted is None:
            best: Numbers = np.nanargmin(self.selection, 1)
            return best
        found = []
        for row, arms in zip(self.selection, wanted, strict=True):
            known = [arm for arm in arms if not np.isnan(row[arm])]
            found.append(min(known, key=row.__getitem__))
        return np.array(found)

    def of_arms(self, chosen: npt.ArrayLike) -> Matrix:
        """What the chosen arms did on the evaluation split, shape (decisions,)."""
        picked: Matrix = self.evaluation[np.arange(len(self.evaluation)), np.asarray(chosen)]
        return picked


@dataclass(frozen=True, eq=False)
class Outcome:
    """One method over all judged decisions."""

    method: str
    oracle_calls: float
    """Candidates measured in each decision."""
    nats: Matrix
    """Loss change of what was chosen, evaluation split, shape (decisions,)."""
    regret: Matrix
    """The same as normalised regret."""

    @classmethod
    def of(cls, method: str, oracle_calls: float, nats: Matrix, grid: Grid) -> "Outcome":
        """The outcome of loss changes of shape (decisions,), compared with those of all arms."""
        return cls(method, oracle_calls, nats, regrets(grid.evaluation, nats))

    def cost(self, measure: str) -> Matrix:
        """`nats`, `regret` or `capped` regret, shape (decisions,)."""
        if measure == "capped":
            capped: Matrix = np.minimum(self.regret, CAP)
            return capped
        return self.nats if measure == "nats" else self.regret


SBS_NATS = "single best by nats (SBS)"
SBS_REGRET = "single best by regret"
VBS = "oracle (VBS)"
SELECTOR = "selector"


@dataclass(frozen=True, eq=False)
class Judged:
    """All methods on the same decisions, and where those come from."""

    outcomes: Mapping[str, Outcome]
    network: npt.NDArray[np.str_]
    family: npt.NDArray[np.str_]
    context: npt.NDArray[np.str_]
    ratio: Matrix
    forecasts: Matrix
    """Of every candidate the predicted loss change in nats, the interval's bounds, and the measured
    one (mean of both splits), shape (candidates, 4)."""

    @property
    def coverage(self) -> float:
        """Share of the candidates whose measured loss change lies in its predicted interval."""
        _, low, high, true = self.forecasts.T
        return float(((low <= true) & (true <= high)).mean())

    @property
    def forecast_correlation(self) -> float:
        """Rank correlation of predicted and measured loss changes, over all candidates."""
        from scipy.stats import spearmanr

        return float(spearmanr(self.forecasts[:, 0], self.forecasts[:, 3]).statistic)

    def mean(self, method: str, measure: str, where: Matrix | None = None) -> float:
        """Mean cost of a method, of all decisions or weighted, weights of shape (decisions,).

        Decisions in which it was not measured do not count.
        """
        cost = self.outcomes[method].cost(measure)
        weights = ~np.isnan(cost) * (1.0 if where is None else where)
        return float(np.average(np.nan_to_num(cost), weights=weights))

    def gap_closed(
        self,
        method: str,
        measure: str = "regret",
        base: str = SBS_NATS,
        where: Matrix | None = None,
    ) -> float:
        """(SBS - method) / (SBS - VBS) on mean costs: 0 is always one metric, 1 the full oracle."""
        # Compared where the method was measured.
        known = ~np.isnan(self.outcomes[method].nats) * (1.0 if where is None else where)
        sbs, own, vbs = (self.mean(name, measure, known) for name in (base, method, VBS))
        return (sbs - own) / (sbs - vbs) if sbs != vbs else float("nan")

    def interval(
        self, method: str, measure: str = "regret", draws: int = 2000, seed: int = 0
    ) -> tuple[float, float]:
        """95 % interval of the gap closed, networks drawn with replacement."""
        names, which = np.unique(self.network, return_inverse=True)
        sums = {
            name: np.bincount(which, self.outcomes[name].cost(measure))
            for name in (SBS_NATS, method, VBS)
        }
        chance = np.random.default_rng(seed)
        counts = chance.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
        sbs, own, vbs = (counts @ sums[name] for name in (SBS_NATS, method, VBS))
        low, high = np.quantile((sbs - own) / (sbs - vbs), (0.025, 0.975))
        return float(low), float(high)

    def by_network(self, method: str, measure: str = "regret") -> dict[str, float]:
        """Network -> mean cost of a method; NaN where it was not measured."""
        cost = self.outcomes[method].cost(measure)
        found = {}
        for name in np.unique(self.network).tolist():
            own = cost[(self.network == name) & ~np.isnan(cost)]
            found[name] = float(own.mean()) if len(own) else float("nan")
        return found

    def worse_than(self, method: str, other: str, measure: str = "regret") -> float:
        """Share of the networks on which a method costs more than another."""
        own, theirs = self.by_network(method, measure), self.by_network(other, measure)
        return float(np.mean([own[name] > theirs[name] + 1e-9 for name in own]))


def joined(parts: Sequence[Judged]) -> Judged:
    """The folds of a protocol as one; methods that every fold has."""
    names = [n for n in parts[0].outcomes if all(n in part.outcomes for part in parts)]
    outcomes = {}
    for name in names:
        found = [part.outcomes[name] for part in parts]
        outcomes[name] = Outcome(
            name,
            float(np.mean([one.oracle_calls for one in found])),
            np.concatenate([one.nats for one in found]),
            np.concatenate([one.regret for one in found]),
        )
    return Judged(
        outcomes,
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("network", "family", "context", "ratio", "forecasts")
        ),
    )
