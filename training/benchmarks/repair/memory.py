"""Peak memory of one repair over that of one scoring pass of the same images.

Each in a process of its own, and beyond what that held before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from selector.repair.reconstruction import reconstruct
from training.benchmarks.common.peak_memory import check_measurable, in_own_process, peak_mib
from training.benchmarks.repair.runs import scoring_pass
from training.benchmarks.repair.speed import SUBJECTS, set_up
from training.reporting.run_file import Key, RunFile

FILE = "repair_memory.jsonl"
VERSION = 1
"""Changes when the repair's memory does."""


@dataclass(frozen=True)
class MemoryRun:
    """One network, as the file holds it; in MiB beyond what there was before."""

    network: str
    images: int
    version: int
    scoring_mib: float
    repair_mib: float

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.network, self.images, self.version

    @property
    def ratio(self) -> float:
        """Repair over scoring pass."""
        return self.repair_mib / self.scoring_mib

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "MemoryRun":
        """Read a line of the file."""
        return cls(**fields)


def run_missing(names: Sequence[str], file: Path, minutes: float | None) -> list[MemoryRun]:
    """Measure what is not in the file yet; return all that is there.

    Raises:
        SelectorError: Neither a GPU nor Linux.
    """
    check_measurable()
    calls: dict[Key, Callable[[], MemoryRun]] = {_key(n): partial(run_one, n) for n in names}
    return RunFile(file, MemoryRun.of).complete(calls, jobs=1, minutes=minutes)


def finished(file: Path) -> list[MemoryRun]:
    """What is in the file, as it would be measured today."""
    found = RunFile(file, MemoryRun.of).read()
    return [found[key] for key in map(_key, SUBJECTS) if key in found]


def run_one(name: str) -> MemoryRun:
    """Peak memory of scoring and of repair."""
    peaks = [in_own_process(_peak, name, what) for what in ("scoring", "repair")]
    return MemoryRun(name, SUBJECTS[name].images, VERSION, *peaks)


def _peak(name: str, what: str) -> float:
    torch.set_num_threads(1)
    model, images, pruned = set_up(SUBJECTS[name])
    work: Callable[[], object] = partial(scoring_pass, model, images)
    if what == "repair":
        work = partial(reconstruct, model, pruned, images)
    return round(peak_mib(work), 1)


def _key(name: str) -> Key:
    return name, SUBJECTS[name].images, VERSION
