r"""Sets by what their channels do to the loss together, greedily and then by swaps.

.. math:: f(S) = \tfrac{1}{2}\, \mathbb{E}[t_S^2] - w\, \mathbb{E}[t_S], \qquad
    t_S = \sum_{c \in S} t_c

with t_c the sum over positions of activation x gradient of channel c in one image
(`selector/statistics/gate_fisher.py`). In nats: the loss change to second order for w = 1.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from selector.statistics.channel_statistics import Signals
from selector.statistics.gate_fisher import Pairs
from selector.typing import Matrix

Propose = Callable[[Signals, int], list[int]]

HELPS = 1e-9
"""A swap helps if it lowers f by more than this share of the set's own terms: not by rounding."""


def joint(weight: float, loss: str = "loss") -> Propose:
    """A proposal by the joint terms, with this weight of the first order.

    Args:
        weight: w in f.
        loss: What is differentiated, in the docstring that `saliency-selector metrics` lists.
    """

    def propose(signals: Signals, count: int) -> list[int]:
        pairs = signals.pairs["plain"]
        # Fewer are the first of more: what was added for one number serves the others.
        known, more = signals.memo.setdefault(
            ("greedy", weight, pairs), ([], _added(pairs, weight))
        )
        known.extend(islice(more, max(0, count - len(known))))
        return swapped(pairs, weight, known[:count])

    effect = f"the set's joint effect on the {loss}"
    propose.__doc__ = f"Greedy by second - {weight:g} x first order of {effect}, then swaps."
    return propose


def greedy(pairs: Pairs, weight: float, count: int) -> list[int]:
    """Channels added one by one, each time the one that raises f least."""
    return list(islice(_added(pairs, weight), count))


def _added(pairs: Pairs, weight: float) -> Iterator[int]:
    own, second = _terms(pairs, weight)
    with_set = np.zeros(len(own))
    for _ in range(len(own)):
        chosen = int((own + with_set).argmin())
        yield chosen
        with_set += second[chosen]
        own[chosen] = np.inf


def swapped(pairs: Pairs, weight: float, chosen: list[int]) -> list[int]:
    """The set after swaps of one channel for another, the best first, until none lowers f."""
    own, second = _terms(pairs, weight)
    inside = np.zeros(len(own), dtype=bool)
    inside[chosen] = True
    enough = HELPS * float(np.abs(second[np.ix_(inside, inside)]).sum() + np.abs(own).sum())
    with_set = second[inside].sum(0)
    gone, free = np.flatnonzero(inside), np.flatnonzero(~inside)
    between = second[np.ix_(gone, free)]
    while True:
        # Taking a channel out also takes out its product with itself, counted in `with_set`.
        fall = own[gone] + with_set[gone] - second[gone, gone]
        change = (own + with_set)[free] - between
        change -= fall[:, None]
        best = int(change.argmin())
        if change.flat[best] >= -enough:
            return sorted(gone.tolist())
        row, column = divmod(best, len(free))
        out, into = gone[row], free[column]
        gone[row], free[column] = into, out
        between[row], between[:, column] = second[into, free], second[gone, out]
        with_set += second[into] - second[out]


def _terms(pairs: Pairs, weight: float) -> tuple[Matrix, Matrix]:
    """What each channel adds to f by itself, and what every two add together."""
    own: Matrix = np.diag(pairs.second) / 2 - weight * pairs.first
    return own, pairs.second
