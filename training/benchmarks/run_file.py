"""Finished runs of a benchmark, one JSON line each: written as they end, and not run again."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from joblib import Parallel, delayed
from tqdm import tqdm

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Run = TypeVar("Run", bound="DataclassInstance")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """All finished runs, in the order in which they ended; none where there is no file.

    A last line that was being written when its process was killed is no finished run.
    """
    if not file.exists():
        return []
    return [json.loads(line) for line in _whole_lines(file.read_text()).splitlines()]


def run_all(
    calls: Sequence[Callable[[], Run]],
    file: Path,
    *,
    jobs: int,
    minutes: float | None = None,
) -> list[Run]:
    """Make the runs one after the other, each with one thread, and write a line as each ends.

    Args:
        calls: The runs, in the order in which they begin.
        file: Where the lines are added.
        jobs: Processes.
        minutes: No run is begun later than this; None for no limit.

    Returns:
        The runs that were made, in the order in which they ended.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and (text := file.read_text()) != _whole_lines(text):
        file.write_text(_whole_lines(text))
    end = None if minutes is None else os.times().elapsed + 60 * minutes
    tasks = (delayed(_in_time)(call, end) for call in calls)
    made = []
    for run in tqdm(Parallel(jobs, return_as="generator_unordered")(tasks), "runs", len(calls)):
        if run is not None:
            made.append(run)
            with file.open("a") as stream:
                stream.write(json.dumps(asdict(run)) + "\n")
    return made


def _in_time(call: Callable[[], Run], end: float | None) -> Run | None:
    if end is not None and os.times().elapsed > end:
        return None
    torch.set_num_threads(1)
    return call()


def _whole_lines(text: str) -> str:
    return text[: text.rfind("\n") + 1]
