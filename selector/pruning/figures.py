"""`Report.plot`: a report as a figure of Matplotlib."""

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from selector.pruning.report import Report


def report_figure(report: "Report") -> Figure:
    """Loss over the multiply-accumulates left, and widths of the groups before and after.

    Args:
        report: Of a pruning.

    Returns:
        Two axes: the first is empty where no round knows its loss.
    """
    figure = Figure(figsize=(10, max(3.0, 0.25 * len(report.rows))), layout="constrained")
    curve, widths = figure.subplots(1, 2)
    points = [(100 * step.macs_kept, step.loss) for step in report.steps if step.loss is not None]
    curve.plot([x for x, _ in points], [y for _, y in points], "o-")
    curve.invert_xaxis()
    curve.set_xlabel("MACs left, %")
    curve.set_ylabel("loss on calibration images")
    names = [row.group for row in report.rows][::-1]
    before = [row.channels_before for row in report.rows][::-1]
    after = [row.channels_after for row in report.rows][::-1]
    widths.barh(names, before, color="lightgrey", label="before")
    widths.barh(names, after, label="after")
    widths.set_xlabel("channels")
    widths.legend()
    return figure
