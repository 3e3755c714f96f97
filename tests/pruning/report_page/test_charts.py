"""Drawings: numbers lie where their axes say, inside the frame."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selector.pruning.report import Report
from selector.pruning.report_page.charts import HEIGHT, WIDTH, Chart, Scale, round_numbers
from selector.pruning.report_page.plots import course_chart, prediction_chart

NUMBERS = st.floats(-1e6, 1e6).map(lambda x: round(x, 6))


@given(NUMBERS, st.floats(1e-6, 1e6))
def test_round_numbers_lie_within_and_evenly(low: float, width: float) -> None:
    high = low + width
    if high - low < 1e-9 * max(abs(low), 1):
        return
    values, decimals = round_numbers(low, high)
    slack = 1e-6 * width
    assert 2 <= len(values) <= 12
    assert all(low - slack <= value <= high + slack for value in values)
    steps = [after - before for before, after in itertools.pairwise(values)]
    assert max(steps) - min(steps) <= slack + 10.0**-decimals * 1e-3
    assert len({f"{value:.{decimals}f}" for value in values}) == len(values)


def test_a_scale_is_straight() -> None:
    scale = Scale(10.0, 20.0, 300.0, 100.0)
    assert [scale(x) for x in (10.0, 15.0, 20.0)] == [300.0, 200.0, 100.0]
    assert all(math.isclose(scale(float(tick.text)), tick.place) for tick in scale.ticks)


@pytest.fixture(scope="module")
def charts(demo_report: Report) -> tuple[Chart, Chart]:
    course, prediction = course_chart(demo_report), prediction_chart(demo_report)
    assert course is not None
    assert prediction is not None
    return course, prediction


def read_off(chart: Chart, x: float, y: float) -> tuple[float, float]:
    """The numbers of a place, read from the ticks of both axes."""
    found = []
    for place, ticks in ((x, chart.x_ticks), (y, chart.y_ticks)):
        first, last = ticks[0], ticks[-1]
        share = (place - first.place) / (last.place - first.place)
        found.append(float(first.text) + share * (float(last.text) - float(first.text)))
    return found[0], found[1]


def test_points_stand_where_the_axes_say(charts: tuple[Chart, Chart], demo_report: Report) -> None:
    course, prediction = charts
    line = next(one for one in course.series if one.shape == "line")
    start = demo_report.calibrated[0]
    assert start is not None
    expected = [(1.0, start.accuracy), *((s.macs_kept, s.accuracy) for s in demo_report.steps)]
    for point, (kept, accuracy) in zip(line.points, expected, strict=True):
        assert accuracy is not None
        x, y = read_off(course, point.x, point.y)
        assert x == pytest.approx(100 * kept, abs=0.05)
        assert y == pytest.approx(100 * accuracy, abs=0.05)
    rounds = prediction.series[0].points
    for point, step in zip(rounds, demo_report.steps, strict=True):
        assert step.predicted_nats is not None
        x, y = read_off(prediction, point.x, point.y)
        assert x == pytest.approx(step.predicted_nats, abs=1e-3)
        assert y == pytest.approx(step.measured_nats, abs=1e-3)


def test_less_is_further_right(charts: tuple[Chart, Chart]) -> None:
    numbers = [float(tick.text) for tick in charts[0].x_ticks]
    places = [tick.place for tick in charts[0].x_ticks]
    assert (numbers == sorted(numbers)) == (places == sorted(places, reverse=True))


def test_everything_lies_inside_the_frame(charts: tuple[Chart, Chart]) -> None:
    for chart in charts:
        for point in (p for one in chart.series for p in one.points):
            assert 0 < point.x < WIDTH
            assert 0 < point.y < HEIGHT


def test_the_diagonal_is_where_both_are_the_same(charts: tuple[Chart, Chart]) -> None:
    chart = charts[1]
    assert chart.diagonal is not None
    for end in chart.diagonal:
        x, y = read_off(chart, end.x, end.y)
        assert x == pytest.approx(y, abs=1e-3)
