"""After repair, which criterion leads? Every one with the same widths, one cut and one repair.

Third-party networks, even shares, 256 calibration images; and the selector as people call it, with
its own shares and rounds. Nothing is tuned on the networks of role "test". Every finished run is a
line of a file, and is not run again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from selector.errors import SelectorError
from selector.pruning.prune import prune
from selector.repair.reconstruction import reconstruct
from selector.tables import text_table
from training.benchmarks.repair.cases import (
    FEW_TEST_IMAGES,
    Case,
    calibration_of,
    every_case,
    network_of,
    test_batches_of,
)
from training.reporting.accuracy import accuracy, quick
from training.reporting.markdown import markdown_table
from training.reporting.marked_part import put
from training.reporting.result_file import write_result
from training.reporting.run_file import Key, RunFile
from training.zoo.shared_third_party import IMAGENET

FILE = "repair_criteria_runs.jsonl"
VERSION = 1
"""Changes when pruning or repair does, so that earlier runs are not taken for new."""

CRITERIA = (
    "random",
    "l1",
    "wanda",
    "taylor",
    "fisher",
    "joint_half",
    "reconstruction",
    "reconstruction_fisher",
)
SELECTOR_EVEN, SELECTOR = "selector", "selector, its shares and rounds"
PRICED = tuple(f"{name}, the selector's shares and rounds" for name in ("l1", "reconstruction"))
"""Other criteria with the widths and rounds that the selector's predictions lead to."""
NAMES = (*CRITERIA, SELECTOR_EVEN, *PRICED, SELECTOR)
KEPT = (0.5, 0.3)
"""Shares of the multiply-accumulates that stay."""


@dataclass(frozen=True)
class CriterionRun:
    """One network pruned and repaired by one criterion."""

    network: str
    role: str
    criterion: str
    keep_macs: float
    version: int
    unpruned: float | None
    pruned: float | None
    """Accuracy before the repair."""
    repaired: float | None
    failed: str | None = None

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.network, self.criterion, self.keep_macs, self.version

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "CriterionRun":
        """Read a line of the file."""
        return cls(**fields)


def cases_here() -> list[Case]:
    """The third-party networks whose images are here, ImageNet's aside, the cheapest first."""
    return [
        c for c in every_case(FEW_TEST_IMAGES).values() if not c.is_own and c.dataset != IMAGENET
    ]


def run(minutes: float | None, results: Path, jobs: int = 1) -> None:
    """Run what is missing, network after network, then print the table and write the result file.

    Args:
        minutes: No run is begun later than this.
        results: Where runs and result file go.
        jobs: Processes.
    """
    calls: dict[Key, Callable[[], CriterionRun]] = {
        (case.name, criterion, keep, VERSION): partial(run_one, case, criterion, keep)
        for case in cases_here()
        for keep in KEPT
        for criterion in NAMES
    }
    runs = RunFile(results / FILE, CriterionRun.of).complete(calls, jobs=jobs, minutes=minutes)
    rows, summary = table_of(runs)
    print(text_table(COLUMNS, rows))
    write_result("repair_criteria", summary, [asdict(one) for one in runs], results)


def update_page(page: Path, results: Path) -> None:
    """Put the table of the result file between the marks of a page."""
    runs = RunFile(results / FILE, CriterionRun.of).read().values()
    rows, summary = table_of(list(runs))
    text = f"Mean accuracy in percent over {summary['networks']:.0f} networks.\n\n"
    put(page, "repair-criteria", text + markdown_table(COLUMNS, rows))


def run_one(case: Case, criterion: str, keep_macs: float) -> CriterionRun:
    """Prune once without repair, repair the very same network, and look at both."""
    model, images, test = network_of(case), calibration_of(case), test_batches_of(case)
    priced = criterion == SELECTOR or criterion in PRICED
    found = CriterionRun(case.name, case.role, criterion, keep_macs, VERSION, None, None, None)
    found = replace(found, unpruned=accuracy(quick(model), test))
    try:
        result = prune(
            model,
            images,
            criterion=criterion.split(",")[0],
            keep_macs=keep_macs,
            allocation="damage" if priced else "even",
            rounds=None if priced else 1,
            repair=False,
        )
        found = replace(found, pruned=accuracy(quick(result.model), test))
        repaired = reconstruct(model, result, images).model
        return replace(found, repaired=accuracy(quick(repaired), test))
    except SelectorError as error:
        return replace(found, failed=str(error))


COLUMNS = (
    "criterion (even shares, one cut)",
    *(f"{keep:.0%}, {state}" for keep in KEPT for state in ("not repaired", "repaired")),
)


def table_of(runs: Sequence[CriterionRun]) -> tuple[list[list[str]], dict[str, float]]:
    """Mean accuracies over the networks that every criterion was run on, and the summary."""
    done = {(one.network, one.criterion, one.keep_macs): one for one in runs if not one.failed}
    networks = [
        name
        for name in dict.fromkeys(one.network for one in runs)
        if all((name, criterion, keep) in done for criterion in NAMES for keep in KEPT)
    ]
    summary: dict[str, float] = {"networks": len(networks)}
    rows = []
    for criterion in NAMES:
        cells = []
        for keep in KEPT:
            for state in ("pruned", "repaired"):
                values = [getattr(done[name, criterion, keep], state) for name in networks]
                value = mean(values) if values else float("nan")
                summary[f"{criterion}, {keep:.0%}, {state}"] = value
                cells.append(f"{100 * value:.1f}")
        rows.append([criterion, *cells])
    return rows, summary
