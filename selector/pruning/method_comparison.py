"""`compare_methods`: a network pruned in several ways, each judged on the same images."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from torch import nn
from tqdm import tqdm

from selector.data.batches import Batches
from selector.data.calibration import Calibration, evaluated
from selector.data.checks import check_model, check_names
from selector.data.fingerprint import fingerprint_of
from selector.data.kept_rows import KeptRows
from selector.errors import SelectorError, nearest
from selector.learning.selector import SaliencySelector
from selector.planning.criteria import Verify
from selector.planning.method import AllocationName
from selector.planning.target import Target, Targets
from selector.pruning.prune import prune
from selector.pruning.result import PruneResult
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
    "MACs",
    "oracle images",
    "time, s",
)


@dataclass(frozen=True)
class PruningMethod:
    """A way to prune that others are compared with."""

    title: str
    criterion: str
    """`single best` stands for the metric that is best over all networks of the records."""
    verify: Verify = 0
    allocation: AllocationName = "even"


SINGLE_BEST = "single best"
METHODS: Mapping[str, PruningMethod] = {
    "l1": PruningMethod("always l1", "l1"),
    "single-best": PruningMethod("single best", SINGLE_BEST),
    "rank-mean": PruningMethod("rank mean", "rank_mean"),
    "reconstruction": PruningMethod("reconstruction", "reconstruction"),
    "even": PruningMethod("selector, even", "selector"),
    "selector": PruningMethod("selector", "selector", 0, "damage"),
    "verify": PruningMethod("selector, verify=3", "selector", 3, "damage"),
    "oracle": PruningMethod("oracle", "oracle"),
}
"""What `compare_methods` knows, by the name that one types."""


@dataclass(frozen=True)
class MethodRow:
    """One way to prune, and what is left of the network on the test images."""

    method: str
    unrepaired_accuracy: float | None
    """Before the repair; None for the unpruned network."""
    accuracy: float | None
    loss: float
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


def compare_methods(
    model: nn.Module,
    batches: Batches,
    *,
    methods: Iterable[str] = tuple(METHODS),
    selector: SaliencySelector | None = None,
    rounds: int | None = None,
    test_batches: Batches | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    **target: Unpack[Targets],
) -> MethodComparison:
    """Prune a network in several ways and judge each on the same images.

    Args:
        model: A trained network; copies are pruned.
        batches: Re-iterable of (inputs, targets) to prune by.
        methods: Names of `METHODS`, in the order of the table.
        selector: The shipped one by default.
        rounds: As for `prune`, the same for all.
        test_batches: Images to judge by; `batches` by default.
        checkpoint: Folder for what is done so far: the same call goes on from it.
        progress: Show progress bars.
        **target: As for `prune`.

    Raises:
        SelectorError: Unusable input, or an unknown method.
    """
    check_model(model)
    names = check_names("methods", methods)
    for name in names:
        if name not in METHODS:
            raise SelectorError(f"unknown method {name!r}; {nearest(name, list(METHODS))}")
    asked = selector or SaliencySelector.shipped()
    wanted = Target.of(target)
    judged = Calibration(batches if test_batches is None else test_batches)
    fingerprint = fingerprint_of(model, [Calibration(batches)], target, rounds, asked.single_best_)
    kept = KeptRows(checkpoint, fingerprint)
    before = evaluated(model, judged)
    rows: list[MethodRow] = []
    first: MethodRow | None = None
    for name in tqdm(names, "methods", disable=not progress, leave=False):
        found = kept.load(name)
        if found is None:
            begin = time.perf_counter()
            how = METHODS[name]
            best = how.criterion == SINGLE_BEST
            result = prune(
                model,
                batches,
                criterion=asked.single_best_ if best else how.criterion,
                verify=how.verify,
                allocation=how.allocation,
                selector=asked if how.criterion == "selector" else None,
                rounds=rounds,
                test_batches=test_batches,
                checkpoint=None if kept.folder is None else kept.folder / name,
                progress=progress,
                **target,
            )
            title = f"{how.title}: {asked.single_best_}" if best else how.title
            found = [
                asdict(_unpruned(result)),
                asdict(_row(title, result, time.perf_counter() - begin)),
            ]
            kept.save(name, found)
        first = MethodRow(**found[0])
        rows.append(MethodRow(**found[1]))
    share = next(iter(target.values()), wanted.keep)
    title = f"{wanted.name}={share:g}"
    return MethodComparison((*([first] if first else []), *rows), title, before.images)


def _unpruned(result: PruneResult) -> MethodRow:
    report = result.report
    return MethodRow(
        method=UNPRUNED,
        unrepaired_accuracy=None,
        accuracy=report.before.accuracy,
        loss=report.before.loss,
        macs=report.macs[0],
        parameters=report.parameters[0],
        oracle_images=0,
        seconds=0.0,
    )


def _row(method: str, result: PruneResult, seconds: float) -> MethodRow:
    report = result.report
    return MethodRow(
        method=method,
        unrepaired_accuracy=None if report.unrepaired is None else report.unrepaired.accuracy,
        accuracy=report.after.accuracy,
        loss=report.after.loss,
        macs=report.macs[1],
        parameters=report.parameters[1],
        oracle_images=report.oracle_images,
        seconds=seconds,
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
