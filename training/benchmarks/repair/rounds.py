"""How few rounds are enough once there is repair? Accuracy and time over the number of rounds.

Third-party networks that may be learnt from, half and three tenths of the MACs, the product as
people call it but for the number of rounds. Every finished run is a line of a file.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from selector.learning.artefact import shipped_file
from selector.pruning.prune import prune
from selector.tables import text_table
from training.benchmarks.networks.learnt import digest_of
from training.benchmarks.repair.cases import (
    Case,
    calibration_of,
    chosen_cases,
    network_of,
    test_batches_of,
)
from training.reporting.accuracy import accuracy, quick
from training.reporting.markdown import markdown_table
from training.reporting.marked_part import put
from training.reporting.result_file import write_result
from training.reporting.run_file import Key, RunFile

FILE = "rounds_runs.jsonl"
NETWORKS = (
    "douzaikongcheng_vgg3_cifar10",
    "bcom5_mobilenetv1x025_cifar10",
    "kuanhenglin_plainbnafter_cifar10",
    "rraghu214_dilateddw_cifar10",
    "bilalxai_plain4_gtsrb",
    "yash12khandelwal_micronet_gtsrb",
    "zlatasm_resnet20a_cifar10",
    "cleffa00_vgg6bn_cifar10",
)
"""Of role "learn", so that the default may be chosen by them."""
ROUNDS = (1, 2, 4, 7)
KEPT = (0.5, 0.3)
COLUMNS = (
    "rounds",
    *(f"{keep:.0%} MACs, {what}" for keep in KEPT for what in ("top-1", "seconds")),
)


@dataclass(frozen=True)
class RoundsRun:
    """One network pruned and repaired in so many rounds."""

    network: str
    rounds: int
    keep_macs: float
    selector: str
    """What tells the selector from others."""
    accuracy: float
    seconds: float
    """CPU time of one core, repair included."""

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.network, self.rounds, self.keep_macs, self.selector

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "RoundsRun":
        """Read a line of the file."""
        return cls(**fields)


def run(minutes: float | None, results: Path) -> None:
    """Make the missing runs, print the table, write the result file.

    Args:
        minutes: No run is begun later than this.
        results: Where runs and result file go.
    """
    selector = digest_of(shipped_file("selector"))
    calls: dict[Key, Callable[[], RoundsRun]] = {
        (case.name, rounds, keep, selector): partial(run_one, case, rounds, keep, selector)
        for case in chosen_cases(NETWORKS)
        for keep in KEPT
        for rounds in ROUNDS
    }
    runs = RunFile(results / FILE, RoundsRun.of).complete(calls, jobs=1, minutes=minutes)
    rows, summary = table_of(runs)
    print(text_table(COLUMNS, rows))
    print(write_result("rounds", summary, [asdict(one) for one in runs], results))


def update_page(page: Path, results: Path) -> None:
    """Put the table between the marks of a page."""
    rows, summary = table_of(list(RunFile(results / FILE, RoundsRun.of).read().values()))
    text = f"Means over {summary['networks']:.0f} networks.\n\n"
    put(page, "rounds", text + markdown_table(COLUMNS, rows))


def run_one(case: Case, rounds: int, keep_macs: float, selector: str) -> RoundsRun:
    """Prune and repair once."""
    images = calibration_of(case)
    began = time.process_time()
    result = prune(network_of(case), images, keep_macs=keep_macs, rounds=rounds)
    seconds = round(time.process_time() - began, 2)
    found = accuracy(quick(result.model), test_batches_of(case))
    return RoundsRun(case.name, rounds, keep_macs, selector, found, seconds)


def table_of(runs: Sequence[RoundsRun]) -> tuple[list[list[str]], dict[str, float]]:
    """Means over the networks that were pruned in every number of rounds, and the summary."""
    done = {(one.network, one.rounds, one.keep_macs): one for one in runs}
    networks = [
        name
        for name in dict.fromkeys(one.network for one in runs)
        if all((name, rounds, keep) in done for rounds in ROUNDS for keep in KEPT)
    ]
    summary: dict[str, float] = {"networks": len(networks)}
    rows = []
    for rounds in ROUNDS if networks else ():
        cells = []
        for keep in KEPT:
            some = [done[name, rounds, keep] for name in networks]
            right, seconds = mean(o.accuracy for o in some), mean(o.seconds for o in some)
            summary[f"accuracy_{100 * keep:.0f}_rounds_{rounds}"] = round(right, 4)
            summary[f"seconds_{100 * keep:.0f}_rounds_{rounds}"] = round(seconds, 2)
            cells += [f"{100 * right:.1f}", f"{seconds:.1f}"]
        rows.append([str(rounds), *cells])
    return rows, summary
