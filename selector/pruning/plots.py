"""Plots of a report, as SVG text that stands inside the page."""

import io
from collections.abc import Sequence

from selector.planning.expectation import Expected


def loss_plot(rounds: Sequence[tuple[float, float | None]], expected: Expected | None) -> str:
    """Loss on the calibration images over the multiply-accumulates left, round by round.

    Args:
        rounds: Share of the multiply-accumulates that each round left, and the loss after it.
        expected: What was said before the first cut; its interval stands at the last round.

    Returns:
        An `<svg>` element; nothing where no round knows its loss.
    """
    # Loaded when a page is written: Matplotlib takes a while.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    points = [(share, loss) for share, loss in rounds if loss is not None]
    if not points:
        return ""
    if expected is not None:
        points = [(1.0, expected.loss), *points]
    with rc_context({"svg.hashsalt": "selector", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([100 * x for x, _ in points], [y for _, y in points], "o-", label="measured")
        if expected is not None:
            low, high = expected.loss_change_interval
            middle = expected.loss_change_nats
            below, above = max(0.0, middle - low), max(0.0, high - middle)
            place, height = 100 * points[-1][0], expected.loss + middle
            bars = [[below], [above]]
            axes.errorbar([place], [height], yerr=bars, fmt="s", capsize=4, label="expected, 90 %")
        axes.invert_xaxis()
        axes.set_xlabel("MACs left, %")
        axes.set_ylabel("loss on calibration images")
        axes.legend()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
