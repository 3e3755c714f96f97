"""Ten million candidates, thousands of folders, a thousand groups: what it takes."""

import gc
import os
import resource
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import selector
from selector.cli.learn import MOST_CANDIDATES
from selector.data.calibration import Calibration
from selector.errors import SelectorError
from selector.planning.candidates import Trial
from selector.planning.choose import explained, plan_surveyed, surveyed
from selector.planning.limits import Widths
from selector.planning.method import method_of
from selector.planning.stage import Stage
from selector.planning.target import Target
from training.benchmarks.reliability.made_records import make_records
from training.benchmarks.reliability.samples import batches, tiny
from training.benchmarks.speed.allocation import chain, groups_of_chain

GROUPS, FOLDERS, CALLS = 1000, 5000, 200


@dataclass(frozen=True)
class LoadRun:
    """What one kind of load took."""

    name: str
    seconds: float
    """By the clock on the wall, which other work on the machine slows down."""
    cpu_seconds: float
    gigabytes: float
    """Largest resident memory of the process."""
    found: Mapping[str, float]
    """What was done, and what grew."""

    @property
    def key(self) -> tuple[object, ...]:
        """The kind of load."""
        return (self.name,)

    @classmethod
    def parse(cls, line: dict[str, Any]) -> "LoadRun":
        """Undo `asdict`."""
        return cls(**line)


def calls(work: Path) -> dict[tuple[object, ...], Callable[[], LoadRun]]:
    """All kinds of load, each measured in a process of its own.

    Args:
        work: Folder for the records that are made.
    """
    return {(name,): partial(_apart, name, work) for name in LOADS}


def folders(work: Path) -> dict[str, float]:
    """Open the records of thousands of small networks."""
    found = selector.Records.load(work / "folders")
    return {"networks": len(found.networks), "candidates": len(found.candidates)}


def ten_million(work: Path) -> dict[str, float]:
    """Fit on what is drawn of ten million candidates."""
    records = selector.Records.load(work / "ten_million", most=MOST_CANDIDATES)
    selector.SaliencySelector().fit(records).save(work / "fitted")
    return {"candidates": 1000 * 40 * 14 * 18, "drawn": len(records.candidates)}


def thousand_groups(_work: Path) -> dict[str, float]:
    """Choose from a thousand groups once they are scored: by the selector, and by one metric."""
    widths = [16 + number % 33 for number in range(GROUPS + 1)]
    model, data = chain(widths)
    calibration, groups = Calibration(data), groups_of_chain(model, widths[:-1])
    limits = Widths.of(groups.prunable, 0.9, 1)
    found = {}
    for criterion in ("selector", "taylor"):
        target = Target.of({"ratio": 0.3})
        stage = Stage(groups, limits, target, 1.0, groups.costs)
        method = method_of(criterion, target)
        survey = surveyed(model, calibration, stage, method)
        began = time.perf_counter()
        plan = plan_surveyed(Trial(model=model, survey=survey, recalibrate=False), stage, method)
        found[f"{criterion}_seconds"] = time.perf_counter() - began
        explained(plan, survey, method.selector)
        found[f"{criterion}_explained_seconds"] = time.perf_counter() - began
    return found


def repeated(_work: Path) -> dict[str, float]:
    """Call `choose` and `prune` again and again: memory, hooks, threads and handles that stay."""
    model, data = tiny(), batches(count=2)
    before: dict[str, float] = {}
    for number in range(CALLS):
        selector.choose(model, data, ratio=0.3)
        selector.prune(model, data, ratio=0.3, criterion="taylor", rounds=1)
        if number == CALLS // 4:  # Caches are full by then.
            before = _held(model)
    after = _held(model)
    return {f"{name}_grown": after[name] - before[name] for name in after}


def _held(model: nn.Module) -> dict[str, float]:
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {
        "megabytes": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "threads": threading.active_count(),
        "handles": len(os.listdir("/proc/self/fd")),
        "tensors": sum(isinstance(x, torch.Tensor) for x in gc.get_objects()),
    }


LOADS: Mapping[str, Callable[[Path], dict[str, float]]] = {
    "folders": folders,
    "groups": thousand_groups,
    "repeated": repeated,
    "ten_million": ten_million,
}
MADE: Mapping[str, tuple[int, int, int, int]] = {
    "folders": (FOLDERS, 2, 2, 4),
    "ten_million": (1000, 40, 14, 18),
}
"""Records that a load needs: networks, groups, counts, arms."""


def _apart(name: str, work: Path) -> LoadRun:
    """Measure a load in a new process."""
    if name in MADE:
        make_records(work / name, *MADE[name])
    asked = [sys.executable, "-m", __name__, name, str(work)]
    done = subprocess.run(asked, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SelectorError(f"load {name} ended with {done.returncode}: {done.stderr[-2000:]}")
    names, values = done.stdout.splitlines()[-2:]
    numbers = [float(part) for part in values.split()]
    found = dict(zip(names.split(), numbers[3:], strict=True))
    return LoadRun(name, numbers[0], numbers[1], numbers[2], found)


def main(name: str, work: Path) -> None:
    """Measure a load, and print seconds, gigabytes and what was found."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    began, cpu = time.perf_counter(), time.process_time()
    found = LOADS[name](work)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(*found)
    print(seconds, cpu, peak, *found.values())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
