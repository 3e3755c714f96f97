"""How many rounds and how many images are enough once there is repair? Accuracy and time.

Third-party networks that may be learnt from, half and three tenths of the MACs, the product as
people call it but for the number of rounds, or of images. Every finished run is a line of a file.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from selector.learning.artefact import shipped_file
from selector.pruning.prune import prune
from selector.tables import text_table
from training.benchmarks.networks.learnt import digest_of
from training.benchmarks.repair.cases import (
    FEW_TEST_IMAGES,
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

NAME = "repair_settings"
FILE = f"{NAME}_runs.jsonl"
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
"""Of role "learn", so that defaults may be chosen by them."""
KEPT = (0.5, 0.3)


class Setting(NamedTuple):
    """What is varied."""

    rounds: int | None = None
    """None for as many as `prune` makes by default."""
    images: int = 256
    """For scores, repair and BatchNorm's statistics."""


VARIED: dict[str, tuple[Setting, ...]] = {
    "rounds": tuple(Setting(rounds=count) for count in (1, 2, 4, 7)),
    "images": tuple(Setting(images=count) for count in (64, 256, 1024)),
}
"""Table by table, what its lines vary; all else is as by default."""
COLUMNS = tuple(f"{keep:.0%} MACs, {what}" for keep in KEPT for what in ("top-1", "seconds"))


@dataclass(frozen=True)
class SettingsRun:
    """One network pruned and repaired in so many rounds, by so many images."""

    network: str
    rounds: int | None
    images: int
    keep_macs: float
    selector: str
    """What tells the selector from others."""
    accuracy: float
    seconds: float
    """CPU time of one core, repair included."""

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.network, self.rounds, self.images, self.keep_macs, self.selector

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "SettingsRun":
        """Read a line of the file."""
        return cls(**fields)


def run(minutes: float | None, results: Path) -> None:
    """Make the missing runs, print the tables, write the result file.

    Args:
        minutes: No run is begun later than this.
        results: Where runs and result file go.
    """
    selector = digest_of(shipped_file("selector"))
    every = dict.fromkeys(setting for some in VARIED.values() for setting in some)
    calls: dict[Key, Callable[[], SettingsRun]] = {
        (case.name, *setting, keep, selector): partial(run_one, case, setting, keep, selector)
        for setting in every
        for case in chosen_cases(NETWORKS)
        for keep in KEPT
    }
    runs = RunFile(results / FILE, SettingsRun.of).complete(calls, jobs=1, minutes=minutes)
    for what in VARIED:
        print(text_table((what, *COLUMNS), table_of(runs, what)[0]))
    print(write_result(NAME, summary_of(runs), [asdict(one) for one in runs], results))


def update_page(page: Path, results: Path) -> None:
    """Put the tables between the marks of a page."""
    runs = list(RunFile(results / FILE, SettingsRun.of).read().values())
    parts = [
        f"Means over {count} networks.\n\n{markdown_table((what, *COLUMNS), rows)}"
        for what in VARIED
        for rows, _, count in [table_of(runs, what)]
    ]
    put(page, "repair-settings", "\n\n".join(parts))


def run_one(case: Case, setting: Setting, keep_macs: float, selector: str) -> SettingsRun:
    """Prune and repair once."""
    case = replace(case, images=setting.images, test_images=FEW_TEST_IMAGES)
    images = calibration_of(case)
    began = time.process_time()
    result = prune(network_of(case), images, keep_macs=keep_macs, rounds=setting.rounds)
    seconds = round(time.process_time() - began, 2)
    found = accuracy(quick(result.model), test_batches_of(case))
    return SettingsRun(case.name, *setting, keep_macs, selector, found, seconds)


class Table(NamedTuple):
    """One of the tables of `VARIED`."""

    rows: list[list[str]]
    summary: dict[str, float]
    networks: int
    """That were run with every setting; the means are theirs."""


def table_of(runs: Sequence[SettingsRun], what: str) -> Table:
    """Means over the networks that were run with every setting of a table."""
    settings = VARIED[what]
    done = {(one.network, Setting(one.rounds, one.images), one.keep_macs): one for one in runs}
    networks = [
        name
        for name in dict.fromkeys(one.network for one in runs)
        if all((name, setting, keep) in done for setting in settings for keep in KEPT)
    ]
    rows, summary = [], {f"networks_{what}": float(len(networks))}
    for setting in settings if networks else ():
        value = getattr(setting, what)
        cells = [str(value)]
        for keep in KEPT:
            some = [done[name, setting, keep] for name in networks]
            right, seconds = mean(o.accuracy for o in some), mean(o.seconds for o in some)
            summary[f"accuracy_{100 * keep:.0f}_{what}_{value}"] = round(right, 4)
            summary[f"seconds_{100 * keep:.0f}_{what}_{value}"] = round(seconds, 2)
            cells += [f"{100 * right:.1f}", f"{seconds:.1f}"]
        rows.append(cells)
    return Table(rows, summary, len(networks))


def summary_of(runs: Sequence[SettingsRun]) -> dict[str, float]:
    """The numbers of all tables."""
    return {key: value for what in VARIED for key, value in table_of(runs, what).summary.items()}
