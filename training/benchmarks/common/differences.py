"""How far one way is ahead of another over networks, with an interval."""

from collections.abc import Mapping, Sequence

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


def difference_of(points: Sequence[float], name: str) -> dict[str, float]:
    """A difference as numbers of a summary; none of fewer than `FEWEST` networks.

    Args:
        points: One for each network.
        name: Key of the mean; `_low`, `_high`, `_worst` and `_networks` are put behind it.
    """
    if len(points) < FEWEST:
        return {}
    middle, low, high = mean_interval(points)
    numbers = {"_worst": min(points), "": middle, "_low": low, "_high": high}
    rounded = {name + end: round(value, 2) for end, value in numbers.items()}
    return {**rounded, f"{name}_networks": len(points)}


def differences_in_words(summary: Mapping[str, float], words: Mapping[str, str]) -> list[str]:
    """The differences of a summary as sentences; what was not measured is left out.

    Args:
        summary: With what `difference_of` gave.
        words: Name of a difference -> what it is of.
    """
    return [_in_words(summary, name, what) for name, what in words.items() if name in summary]


def _in_words(summary: Mapping[str, float], name: str, words: str) -> str:
    low, high = summary[f"{name}_low"], summary[f"{name}_high"]
    verdict = " An interval that holds zero says: no difference." if low < 0 < high else ""
    return (
        f"{words}: {summary[name]:+.1f} points ({low:+.1f} to {high:+.1f}; on the worst network "
        f"{summary[f'{name}_worst']:+.1f}).{verdict}"
    )
