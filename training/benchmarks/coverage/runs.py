"""Trials in processes of their own, with a limit; finished ones are lines of a file."""

import hashlib
import json
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import selector
from training.benchmarks.coverage.catalogue import every_subject
from training.benchmarks.coverage.subject import Subject
from training.benchmarks.coverage.trial import Finding, Outcome, Tool, in_process
from training.reporting.run_file import Key, RunFile

FILE = "coverage_runs.jsonl"
SECONDS = 480
"""CPU time of a trial, 240 s of two cores; other work on the machine does not count."""
PATIENCE = 3
"""Wall time after which a process is stopped, in limits."""
VERSION = 1
"""Changes when the benchmark does, so that earlier runs are not taken for new."""
TOOLS: tuple[Tool, ...] = get_args(Tool)


@dataclass(frozen=True)
class CoverageRun:
    """One finished trial, as the file holds it."""

    network: str
    source: str
    family: str
    tool: Tool
    version: int
    code: str
    """Of `selector/` when it ran."""
    found: Finding

    @property
    def key(self) -> Key:
        """What tells it from others; a later line of the same key replaces an earlier one."""
        return self.network, self.tool, self.version

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "CoverageRun":
        """Read a line of the file."""
        found = dict(fields["found"])
        found["faults"] = tuple(found["faults"])
        found["macs"] = None if found["macs"] is None else tuple(found["macs"])
        return cls(**{**fields, "found": Finding(**found)})


@cache
def code_version() -> str:
    """12 hexadecimal digits that change with any source file of `selector/`."""
    folder = Path(selector.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def run_missing(
    subjects: Sequence[Subject],
    tools: Sequence[Tool],
    file: Path,
    *,
    minutes: float | None = None,
    again: Sequence[Outcome] = (),
) -> list[CoverageRun]:
    """Run what is not in the file yet, one process after the other.

    Args:
        subjects: Networks.
        tools: What prunes them.
        file: Of finished runs.
        minutes: No run is begun later than this.
        again: Outcomes that are run again where the code has changed since.

    Returns:
        All runs of these networks and tools that are there now.
    """
    runs = RunFile(file, CoverageRun.of)
    stale = {
        key
        for key, run in runs.read().items()
        if run.found.outcome in again and run.tool == "selector" and run.code != code_version()
    }
    calls: dict[Key, Callable[[], CoverageRun]] = {
        (subject.name, tool, VERSION): partial(run_one, subject, tool)
        for subject in subjects
        for tool in tools
    }
    return runs.complete(calls, jobs=1, minutes=minutes, again=stale)


def finished(file: Path) -> list[CoverageRun]:
    """The runs of this version of the benchmark, in the order of its networks."""
    found = RunFile(file, CoverageRun.of).read()
    keys = [(name, tool, VERSION) for name in every_subject() for tool in TOOLS]
    return [found[key] for key in keys if key in found]


def run_one(subject: Subject, tool: Tool) -> CoverageRun:
    """One trial in a process of its own, stopped at the limit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        process = _server().Process(target=in_process, args=(subject.name, tool, path, SECONDS))
        began = time.monotonic()
        process.start()
        try:
            process.join(PATIENCE * SECONDS)
        finally:  # Also where the benchmark itself is stopped.
            if late := process.is_alive():
                process.kill()
                process.join()
        found = _read(path)
    if found["outcome"] == "timeout" and (late or process.exitcode == -signal.SIGXCPU):
        elapsed = time.monotonic() - began
        found["reason"] = (
            f"{found['stage']}: stopped after {elapsed:.0f} s, {SECONDS} s of CPU at most"
        )
    elif process.exitcode != 0 or found["outcome"] == "timeout":
        # Killed by something else: for its memory, or a fault of a library.
        found |= {"outcome": "crash", "reason": f"{found['stage']}: exit {process.exitcode}"}
    fields = {"network": subject.name, "source": subject.source, "family": subject.family}
    return CoverageRun.of(
        {**fields, "tool": tool, "version": VERSION, "code": code_version(), "found": found}
    )


def _read(path: Path) -> dict[str, Any]:
    """What the process had found; a half-written file is as good as none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return asdict(Finding())
    return found


@cache
def _server() -> multiprocessing.context.ForkServerContext:
    """Processes forked from one that has imported everything, for that takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.benchmarks.coverage.trial"])
    return context
