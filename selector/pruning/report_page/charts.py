"""Line charts and scatter plots as geometry, which the template draws as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 440.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 18.0, 16.0, 50.0
"""Margins, in units of the drawing."""
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
ROOM = 0.06
"""Share of the range that is left free at both ends."""


@dataclass(frozen=True)
class Tick:
    """A place on an axis, and the number that is written there."""

    place: float
    text: str


@dataclass(frozen=True)
class Scale:
    """Numbers to places: `low` lies at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a number."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """Round numbers and their places."""
        values, decimals = round_numbers(self.low, self.high)
        return tuple(Tick(self(value), f"{value:.{decimals}f}") for value in values)


@dataclass(frozen=True)
class Point:
    """A measured point, and what it says when one points at it."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Series:
    """Points of one kind."""

    name: str
    shape: str
    """`line`, `circle`, `square`, `diamond` or `interval`: how it is drawn, and its colour."""
    points: tuple[Point, ...]
    """Of an interval, its lower and its upper end."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing: places are in units of the drawing, from its upper left corner."""

    name: str
    title: str
    description: str
    """What the drawing shows, for those who do not see it."""
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[Series, ...]
    diagonal: tuple[Point, Point] | None = None
    """Where both axes have the same number."""

    width, height = WIDTH, HEIGHT
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM


def round_numbers(low: float, high: float, count: int = 5) -> tuple[list[float], int]:
    """About `count` round numbers from low to high, and the decimals that they need.

    >>> round_numbers(0.0, 1.0)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], 1)
    >>> round_numbers(48.0, 102.0)
    ([50.0, 60.0, 70.0, 80.0, 90.0, 100.0], 0)
    """
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min(STEPS, key=lambda factor: abs(math.log(factor * power / raw)))
    decimals = next(n for n in range(12) if math.isclose(step * 10**n, round(step * 10**n)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, decimals) for number in range(first, last + 1)], decimals


def range_of(
    values: Sequence[float], lowest: float = -math.inf, highest: float = math.inf
) -> tuple[float, float]:
    """A range that holds the numbers with some room, within what is possible."""
    low, high = min(values), max(values)
    room = ROOM * (high - low) or max(abs(high) * ROOM, 1e-3)
    return max(lowest, low - room), min(highest, high + room)


def chart_of(
    series: Sequence[Series],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    *,
    name: str,
    title: str,
    description: str,
    labels: tuple[str, str],
    diagonal: bool = False,
) -> Chart:
    """Place points that are given in their own units.

    Args:
        series: What to draw; points outside the ranges are drawn at the edge.
        x_range: Numbers at the left and at the right edge; the first may be the higher.
        y_range: Numbers at the lower and at the upper edge.
        name: Identifies the drawing within the page.
        title: Its title.
        description: What it shows, in words.
        labels: Of the horizontal and of the vertical axis.
        diagonal: Whether to draw where both numbers are the same.
    """
    across = Scale(*x_range, LEFT, WIDTH - RIGHT)
    up = Scale(*y_range, HEIGHT - BOTTOM, TOP)
    ticks = (
        across
        if across.low < across.high
        else Scale(across.high, across.low, across.end, across.start)
    )

    def placed(x: float, y: float, text: str = "") -> Point:
        low, high = sorted(x_range)
        return Point(across(min(max(x, low), high)), up(min(max(y, y_range[0]), y_range[1])), text)

    ends = max(min(x_range), y_range[0]), min(max(x_range), y_range[1])
    return Chart(
        name=name,
        title=title,
        description=description,
        x_label=labels[0],
        y_label=labels[1],
        x_ticks=ticks.ticks,
        y_ticks=up.ticks,
        series=tuple(
            Series(one.name, one.shape, tuple(placed(p.x, p.y, p.text) for p in one.points))
            for one in series
        ),
        diagonal=(placed(ends[0], ends[0]), placed(ends[1], ends[1])) if diagonal else None,
    )
