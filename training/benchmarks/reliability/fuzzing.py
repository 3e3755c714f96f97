"""Changed files of all loaders, read in other processes; crashes and strange errors counted."""

import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from selector.errors import SelectorError
from training.benchmarks.reliability import loaders
from training.benchmarks.reliability.loaders import LOADERS, Loader
from training.benchmarks.reliability.mutations import mutated

CASE_SECONDS = 20
"""A load that computes for longer hangs; on a busy machine the clock on the wall tells nothing."""
CASE_WALL_SECONDS = 600
"""So does one that waits for longer."""
MOST_GROWTH = 2**31
"""Bytes that a load may add to the process."""
MOST_RESERVED = 2**33
"""Bytes of addresses that all loads of a process may add, so that a load that asks for all memory
fails, and takes nothing else with it."""

CASES = {
    **{"selector": 4000, "records": 3000, "plan": 3000, "checkpoint": 2500, "pruned": 2000},
    **{"distillation": 1500, "weights": 1000, "journal": 2000, "image table": 1500},
    **{"pickle": 1500, "images": 2500},
}
"""Loader -> changed files."""
CHUNK = 250


def calls(samples: Path) -> dict[tuple[object, ...], Callable[[], "FuzzRun"]]:
    """All runs, loaders in turns."""
    spans = [
        (start, name, min(start + CHUNK, count))
        for name, count in CASES.items()
        for start in range(0, count, CHUNK)
    ]
    return {
        (name, start, stop): functools.partial(fuzz, name, start, stop, samples)
        for start, name, stop in sorted(spans)
    }


@dataclass(frozen=True)
class FuzzRun:
    """What came of some changed files of one loader."""

    loader: str
    start: int
    stop: int
    refused: int
    """Named by a `SelectorError`."""
    same: int
    """Read as what they were."""
    changed: int
    """Read as something else, as is right where no checksum stands against it."""
    unnoticed: int
    """Read as something else although a checksum should have told."""
    resealed: int
    crashes: int
    hangs: int
    memory: int
    foreign: tuple[str, ...] = field(default=())
    """Errors that are none of ours, crashes, hangs and what else must not be, with the case."""

    @property
    def key(self) -> tuple[object, ...]:
        """Loader and cases."""
        return self.loader, self.start, self.stop

    @classmethod
    def parse(cls, line: dict[str, Any]) -> "FuzzRun":
        """Undo `asdict`."""
        return cls(**{**line, "foreign": tuple(line["foreign"])})


def fuzz(loader: str, start: int, stop: int, samples: Path) -> FuzzRun:
    """Read changed files in other processes; where one crashes, the next goes on behind it.

    Args:
        loader: One of `LOADERS`.
        start: First case.
        stop: Behind the last one.
        samples: Folder of `make_samples`.
    """
    counts: Counter[str] = Counter()
    foreign: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        at = start
        while at < stop:
            log.write_text("")
            asked = [
                sys.executable,
                "-m",
                __name__,
                loader,
                str(at),
                str(stop),
                str(samples),
                folder,
            ]
            budget = CASE_WALL_SECONDS + 120 + 20.0 * (stop - at)
            try:
                done = subprocess.run(asked, timeout=budget, capture_output=True, check=False)
                ended = "" if done.returncode == 0 else f"crash {done.returncode}"
            except subprocess.TimeoutExpired:
                ended = "hang"
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            for line in lines:
                counts[line["what"]] += 1
                counts["resealed"] += line["resealed"]
                if line["what"] in ("foreign", "hangs", "memory", "unnoticed"):
                    foreign.append(f"{line['case']}: {line['error']}")
            at += len(lines)
            if ended:
                counts["hangs" if ended == "hang" else "crashes"] += 1
                foreign.append(f"{at}: {ended}")
                at += 1
    return FuzzRun(
        loader=loader,
        start=start,
        stop=stop,
        refused=counts["refused"],
        same=counts["same"],
        changed=counts["changed"],
        unnoticed=counts["unnoticed"],
        resealed=counts["resealed"],
        crashes=counts["crashes"],
        hangs=counts["hangs"],
        memory=counts["memory"],
        foreign=tuple(foreign),
    )


def read_cases(loader: str, start: int, stop: int, samples: Path, folder: Path) -> None:
    """Read changed files in this process, and write a line after each.

    Args:
        loader: One of `LOADERS`.
        start: First case.
        stop: Behind the last one.
        samples: Folder of `make_samples`.
        folder: Where changed files and the log are put.
    """
    warnings.simplefilter("ignore")
    loaders.SAMPLES = samples
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, _too_long)
    how = LOADERS[loader]
    whole = how.load(samples / how.place)
    with open(folder / "log", "a") as log:
        for case in range(start, stop):
            place = folder / "case" / how.place
            shutil.rmtree(folder / "case", ignore_errors=True)
            place.parent.mkdir(parents=True)
            source = samples / how.place
            (shutil.copytree if source.is_dir() else shutil.copy)(source, place)
            line = {"case": case, **_read(how, loader, place, case, whole)}
            log.write(json.dumps(line) + "\n")
            log.flush()


def change(how: Loader, name: str, place: Path, case: int) -> bool:
    """Change a sample in place; whether it was sealed again."""
    chance = random.Random(f"{name} {case}")
    if how.reseal is not None and case % 2:
        how.reseal(place, chance)
        return True
    file = place
    if place.is_dir():
        file = chance.choice(sorted(x for x in place.glob(how.pattern) if x.is_file()))
    file.write_bytes(mutated(file.read_bytes(), chance))
    return False


def _read(how: Loader, name: str, place: Path, case: int, whole: str) -> dict[str, object]:
    resealed = change(how, name, place, case)
    before = _peak()
    signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
    signal.alarm(CASE_WALL_SECONDS)
    began, cpu = time.monotonic(), time.process_time()
    try:
        found = how.load(place)
        what = "same" if found == whole else "changed"
        if what == "changed" and how.sealed and not resealed:
            what = "unnoticed"
        error = ""
    except SelectorError as refused:
        what, error = "refused", str(refused)
    except _TooLongError:
        seconds, computed = time.monotonic() - began, time.process_time() - cpu
        what, error = "hangs", f"hang of {seconds:.0f} s, {computed:.0f} s of them computing"
    except BaseException as other:  # Whatever it is, it is none of ours.
        what, error = "foreign", f"{type(other).__name__}: {other}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    if (grown := _peak() - before) > MOST_GROWTH:
        what, error = "memory", f"memory grew by {grown / 2**30:.1f} GiB"
    if what == "unnoticed":
        error = "unnoticed change"
    return {"what": what, "resealed": resealed, "error": error[:300]}


def _mapped() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _TooLongError(BaseException):
    """No `Exception`, so that nothing on the way takes it for a fault of the file."""


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise _TooLongError


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_mapped() + MOST_RESERVED, most))
    read_cases(
        sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5])
    )
