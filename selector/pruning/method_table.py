"""What came of several ways to prune one network: a table, and bars."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from selector.tables import count_text, data_frame, html_table, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

UNPRUNED = "unpruned"
COLUMNS = (
    "pruned by",
    "not repaired",
    "repaired",
    "loss",
    "expected drop, points",
    "MACs",
    "oracle images",
    "time, s",
)


@dataclass(frozen=True)
class MethodRow:
    """One way to prune, and what is left of the network on the test images."""

    method: str
    unrepaired_accuracy: float | None
    """Before the repair; None for the unpruned network."""
    accuracy: float | None
    loss: float
    expected_drop: tuple[float, float, float] | None
    """Accuracy that was expected to go, and the least and the most of it; None where nothing was
    predicted."""
    macs: float
    parameters: float
    oracle_images: int
    """Images that the oracle evaluated to choose."""
    seconds: float


@dataclass(frozen=True, repr=False)
class MethodComparison:
    """Ways to prune one network, compared; prints as a table, plots as bars."""

    rows: tuple[MethodRow, ...]
    target: str
    images: int

    def __repr__(self) -> str:
        """Which was best."""
        pruned = [row for row in self.rows if row.method != UNPRUNED]
        best = min(pruned, key=lambda row: row.loss).method if pruned else "none"
        return f"MethodComparison({len(pruned)} methods at {self.target}; lowest loss: {best})"

    def __str__(self) -> str:
        """A line for each way."""
        return "\n".join(
            [
                text_table(COLUMNS, self._cells()),
                f"{self.target}; losses and accuracies on {self.images} images",
            ]
        )

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return html_table(COLUMNS, self._cells(), title=repr(self))

    def _cells(self) -> list[list[str]]:
        return [
            [
                row.method,
                _percent(row.unrepaired_accuracy),
                _percent(row.accuracy),
                f"{row.loss:.3f}",
                _drop(row.expected_drop),
                count_text(row.macs),
                f"{row.oracle_images}" if row.oracle_images else "-",
                f"{row.seconds:.1f}",
            ]
            for row in self.rows
        ]

    def to_json(self) -> str:
        """The rows as JSON text."""
        return json.dumps([asdict(row) for row in self.rows], indent=1)

    def to_pandas(self) -> "DataFrame":
        """The rows as a pandas table."""
        return data_frame([asdict(row) for row in self.rows])

    def plot(self) -> "Figure":
        """Accuracy, or loss where there is none, as bars; oracle images and seconds beside them."""
        from matplotlib.figure import Figure

        rows = self.rows[::-1]
        scored = all(row.accuracy is not None for row in rows)
        values = [100 * (row.accuracy or 0.0) if scored else row.loss for row in rows]
        figure = Figure(figsize=(7, 1 + 0.4 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        bars = axes.barh([row.method for row in rows], values)
        axes.bar_label(
            bars,
            [f"{v:.1f} ({row.seconds:.0f} s)" for v, row in zip(values, rows, strict=True)],
            padding=3,
        )
        axes.set_xlabel("accuracy, %" if scored else "loss")
        axes.set_title(f"pruned to {self.target} (seconds to prune)")
        axes.margins(x=0.2)
        return figure


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _drop(expected: tuple[float, float, float] | None) -> str:
    """In points of accuracy, with its interval."""
    if expected is None:
        return "-"
    drop, least, most = (100 * share for share in expected)
    return f"{drop:.0f} ({least:.0f} to {most:.0f})"
