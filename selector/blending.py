"""What following an arm costs as predicted: its regret, and beside it how much it damages.

The normalised regret asks for the best arm, whatever is at stake; the damage in nats weighs the
decisions in which a wrong arm ruins the layer. Each is learnt by boosters of its own, with errors
of their own, and their sum errs less than either.
"""

import numpy as np

from selector.learning import Numbers, TrainingTable
from selector.pairs import Matrix

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the damage beside the regret: those that are tried."""


def excess(logs: Matrix, decision: Numbers) -> Matrix:
    """Log damages above the least of their decision.

    Args:
        logs: Of every row, shape (rows,).
        decision: Of every row the number of its decision, ascending.
    """
    starts = _starts(decision)
    least = np.minimum.reduceat(logs, starts)
    above: Matrix = logs - np.repeat(least, np.diff(starts, append=len(logs)))
    return above


def best_weight(table: TrainingTable, regrets: Matrix, logs: Matrix) -> float:
    """The weight of the damage by which the arms chosen have the lowest mean capped regret.

    Args:
        table: Measured decisions.
        regrets: Of every row the normalised regret, predicted without the row's network.
        logs: The same of the log damage.

    Returns:
        One of `WEIGHTS`, the least of those that are equally good.
    """
    starts = _starts(table.seen.decision)
    above, true = excess(logs, table.seen.decision), table.regret

    def mean_regret(weight: float) -> float:
        parts = np.split(regrets + weight * above, starts[1:])
        chosen = starts + np.array([part.argmin() for part in parts])
        return float(np.average(true[chosen], weights=table.weight))

    return min(WEIGHTS, key=mean_regret)


def _starts(decision: Numbers) -> Numbers:
    """The first row of every decision."""
    return np.flatnonzero(np.diff(decision, prepend=-1))
