"""Normalised regret: by how much a choice is worse than the best, in units of the decision."""

import numpy as np

from selector.typing import Matrix

FLOOR_NATS = 0.002
"""Added to the spread of a decision's arms, so that decisions without a difference stay small."""
CAP = 3.0
"""Capped regrets above this count as this: one ruined layer teaches no more than another."""


def regrets(nats: Matrix, judged: Matrix | None = None) -> Matrix:
    r"""Loss changes above the best arm's, over the distance from the best to the median arm.

    .. math:: r_a = \frac{d_a - \min_b d_b}{\mathrm{median}_b\, d_b - \min_b d_b + 0.002}

    Args:
        nats: Loss changes of all arms of each decision, shape (..., arms); NaN where an arm was not
            measured.
        judged: Loss changes to judge, shape (...) or (..., choices); those of all arms by default.

    Returns:
        Regrets of the shape of what is judged.
    """
    ordered = np.sort(nats, -1)
    best = ordered[..., :1]
    # What np.nanmedian gives, in a tenth of the time; NaN is sorted to the end.
    known = (~np.isnan(ordered)).sum(-1, keepdims=True)
    low, high = (np.take_along_axis(ordered, n // 2, -1) for n in (known - 1, known))
    scale = np.where(known > 0, (low + high) / 2, np.nan) - best + FLOOR_NATS
    if judged is None:
        every: Matrix = (nats - best) / scale
        return every
    single = judged.ndim < nats.ndim
    found: Matrix = ((judged[..., None] if single else judged) - best) / scale
    return found[..., 0] if single else found
