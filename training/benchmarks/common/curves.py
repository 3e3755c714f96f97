"""An accuracy-MACs curve as a value: read between its points, its area, where it falls."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.integrate import trapezoid

HIGH, LOW = 0.9, 0.3
"""Shares of the MACs between which the area is taken."""
DROP = 0.05
"""Fall in top-1 at which the removed weights are stated."""


@dataclass(frozen=True)
class CurvePoint:
    """A network at one moment of its pruning."""

    macs_kept: float
    """Share of the unpruned network's multiply-accumulates."""
    weights_removed: float
    """Share of the unpruned network's convolution weights."""
    accuracy: float
    """Top-1 on the test images, 0 to 1."""


def accuracy_at(curve: Sequence[CurvePoint], macs_kept: float) -> float | None:
    """Accuracy at a share of the MACs, linear between points; None outside the curve.

    Args:
        curve: Points from the unpruned network on, their MACs falling.
        macs_kept: Where to read it.
    """
    macs = [point.macs_kept for point in curve]
    if not macs[-1] <= macs_kept <= macs[0]:
        return None
    values = [point.accuracy for point in curve]
    return float(np.interp(macs_kept, macs[::-1], values[::-1]))


def area(curve: Sequence[CurvePoint], high: float = HIGH, low: float = LOW) -> float | None:
    r"""Mean accuracy over the MACs between two shares, by trapezoids; None where the curve ends.

    .. math:: \frac{1}{h - l} \int_l^h \mathrm{accuracy}(m)\, dm

    Exact for straight lines between the points.
    """
    ends = accuracy_at(curve, high), accuracy_at(curve, low)
    if ends[0] is None or ends[1] is None:
        return None
    inside = [(p.macs_kept, p.accuracy) for p in curve if low < p.macs_kept < high]
    macs, values = zip((high, ends[0]), *inside, (low, ends[1]), strict=True)
    return float(-trapezoid(values, macs) / (high - low))


def removed_at_drop(curve: Sequence[CurvePoint], drop: float = DROP) -> float | None:
    """Share of the weights removed when accuracy first falls by `drop`; None where it never does.

    Linear between the last point above and the first below.
    """
    place = first_below([p.accuracy for p in curve], curve[0].accuracy - drop)
    if place is None:
        return None
    return float(np.interp(place, range(len(curve)), [p.weights_removed for p in curve]))


def first_below(values: Sequence[float], limit: float) -> float | None:
    """Where values that begin above a limit first reach it, in places from 0; None where never.

    A place of 2.25 is a quarter of the way from the third value to the fourth.
    """
    for number, value in enumerate(values):
        if value <= limit:
            before = values[number - 1]
            return number - 1 + (before - limit) / (before - value)
    return None
