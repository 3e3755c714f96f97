"""How far one way is ahead of another over networks, with an interval."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

FEWEST = 3
"""Networks of which an interval can be told."""


def mean_interval(points: Sequence[float]) -> tuple[float, float, float]:
    """Mean over networks, and the ends of its 95 % interval by Student's t.

    Args:
        points: A difference for each network, `FEWEST` or more.

    Returns:
        The mean, the lower end, the upper end.
    """
    middle = float(np.mean(points))
    error = float(np.std(points, ddof=1)) / len(points) ** 0.5
    half = float(student.ppf(0.975, len(points) - 1)) * error
    return middle, middle - half, middle + half
