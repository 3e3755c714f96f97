"""Peak memory of one repair over that of one scoring pass of the same images.

Each in a process of its own, so that neither uses what the other has left in the allocator; what
the process held before it began is taken off. Linux alone tells a peak that can be set back.
"""

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from selector.errors import SelectorError
from selector.repair.reconstruction import reconstruct
from training.benchmarks.repair.runs import scoring_pass
from training.benchmarks.repair.speed import SUBJECTS, set_up
from training.reporting.run_file import Key, RunFile

FILE = "repair_memory.jsonl"
VERSION = 1
"""Changes when the repair's memory does."""
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
        SelectorError: Not on Linux.
    """
    if not RESET.exists():
        raise SelectorError(f"there is no {RESET}: peak memory is measured on Linux alone")
    calls: dict[Key, Callable[[], MemoryRun]] = {_key(n): partial(run_one, n) for n in names}
    return RunFile(file, MemoryRun.of).complete(calls, jobs=1, minutes=minutes)


def finished(file: Path) -> list[MemoryRun]:
    """What is in the file, as it would be measured today."""
    found = RunFile(file, MemoryRun.of).read()
    return [found[key] for key in map(_key, SUBJECTS) if key in found]


def run_one(name: str) -> MemoryRun:
    """Peak memory of scoring and of repair."""
    peaks = []
    for what in ("scoring", "repair"):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            peaks.append(pool.submit(_peak, name, what).result())
    return MemoryRun(name, SUBJECTS[name].images, VERSION, *peaks)


def _peak(name: str, what: str) -> float:
    torch.set_num_threads(1)
    model, images, pruned = set_up(SUBJECTS[name])
    gc.collect()
    RESET.write_text("5")  # The peak is the present from here on.
    before = _mib("VmRSS")
    if what == "scoring":
        scoring_pass(model, images)
    else:
        reconstruct(model, pruned, images)
    return round(_mib("VmHWM") - before, 1)


def _mib(field: str) -> float:
    line = next(row for row in STATUS.read_text().splitlines() if row.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def _key(name: str) -> Key:
    return name, SUBJECTS[name].images, VERSION
