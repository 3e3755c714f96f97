"""The report's two charts: accuracy over what is left, and predicted against measured."""

from collections.abc import Iterator

from selector.data.loss import Evaluation
from selector.pruning.report_page.charts import Chart, Point, Series, chart_of, range_of
from selector.pruning.report_page.verdict import TEST_IMAGES
from selector.pruning.report_values import ReportValues, StepRow


def course_chart(report: ReportValues) -> Chart | None:
    """Accuracy over the multiply-accumulates left; the loss where no accuracy is known.

    Returns:
        None where neither is known of any round.
    """
    accuracies = any(step.accuracy is not None for step in report.steps)
    if not accuracies and all(step.loss is None for step in report.steps):
        return None
    what = "accuracy" if accuracies else "loss"
    series = [one for one in _course(report, what) if one.points]
    places = [p.x for one in series for p in one.points]
    heights = [p.y for one in series for p in one.points]
    low, high = range_of(places, 0.0)
    return chart_of(
        series,
        (max(high, 101.0), low),
        range_of(heights, 0.0, 100.5) if accuracies else range_of(heights),
        name="course",
        title=f"{what.capitalize()} over MACs",
        description=_said(series, what),
        labels=("MACs left, %", "accuracy, %" if accuracies else "loss"),
    )


def _course(report: ReportValues, what: str) -> Iterator[Series]:
    """The series of the first chart, in their own units."""
    kept = 100 * report.macs[1] / report.macs[0]
    rounds = [
        _point(100 * s.macs_kept, s, what, f"round {n}") for n, s in enumerate(report.steps, 1)
    ]
    start = [_point(100, report.calibrated[0], what, "unpruned")]
    on_test = report.images_from == TEST_IMAGES
    name = "calibration images, after each round"
    yield Series(name, "line", tuple(p for p in start + rounds if p is not None))
    expected = report.expected
    if expected is not None:
        interval = (
            expected.accuracy_interval if what == "accuracy" else expected.loss_change_interval
        )
        if interval is not None:
            ends = (
                [100 * x for x in interval]
                if what == "accuracy"
                else [expected.loss + x for x in interval]
            )
            points = tuple(
                Point(kept, end, f"expected before the first cut: {end:.4g}") for end in ends
            )
            yield Series("expected before the first cut, 90 %", "interval", points)
    of = report.images_from
    unpruned = _point(100, report.before, what, f"unpruned, {of}") if on_test else None
    stages = {
        "circle": ("before repair", report.unrepaired),
        "square": ("before distillation", report.undistilled),
    }
    for shape, (stage, found) in stages.items():
        point = _point(kept, found, what, f"{stage}, {of}")
        yield Series(f"{of}, {stage}", shape, () if point is None else (point,))
    last = _point(kept, report.after, what, f"result, {of}")
    yield Series(f"{of}, result", "diamond", tuple(p for p in (unpruned, last) if p is not None))


def _point(place: float, found: Evaluation | StepRow | None, what: str, name: str) -> Point | None:
    value = None if found is None else getattr(found, what)
    if value is None or value != value:  # NaN: no labels.
        return None
    shown = 100 * value if what == "accuracy" else value
    text = f"{shown:.1f} %" if what == "accuracy" else f"{shown:.4f}"
    return Point(place, shown, f"{name}: {place:.0f} % of the MACs, {what} {text}")


def _said(series: list[Series], what: str) -> str:
    first, last = series[0].points[0], series[-1].points[-1]
    return (
        f"Line chart of the {what} while the network gets smaller. {first.text}. {last.text}. "
        "The table of rounds has all numbers."
    )


def prediction_chart(report: ReportValues) -> Chart | None:
    """Measured over predicted loss change, round by round, and group by group where measured.

    Returns:
        None where nothing was both predicted and measured.
    """
    rounds = tuple(
        Point(
            s.predicted_nats,
            s.measured_nats,
            f"round {number}: {_both(s.predicted_nats, s.measured_nats)}",
        )
        for number, s in enumerate(report.steps, 1)
        if s.predicted_nats is not None and s.measured_nats is not None
    )
    groups = tuple(
        Point(
            row.predicted_nats,
            row.measured_nats,
            f"{row.group}: {_both(row.predicted_nats, row.measured_nats)}",
        )
        for row in report.rows
        if row.predicted_nats is not None and row.measured_nats is not None
    )
    series = [
        Series("rounds", "diamond", rounds),
        Series("groups, by the oracle", "circle", groups),
    ]
    series = [one for one in series if one.points]
    if not series:
        return None
    both = range_of([0.0, *(v for one in series for p in one.points for v in (p.x, p.y))])
    above = sum(p.y > p.x for p in rounds)
    return chart_of(
        series,
        both,
        both,
        name="prediction",
        title="Predicted against measured",
        description=f"Scatter plot of the loss change of each round. In {above} of {len(rounds)} "
        "rounds the loss rose more than predicted. The table of rounds has all numbers.",
        labels=("predicted loss change, nats", "measured, nats"),
        diagonal=True,
    )


def _both(predicted: float, measured: float) -> str:
    return f"predicted {predicted:+.4f}, measured {measured:+.4f} nats"
