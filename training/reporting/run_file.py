"""Finished runs of a benchmark, one JSON line each: written as they end, and not run again."""

import json
import os
from collections.abc import Callable, Container, Mapping
from dataclasses import Field, asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from joblib import Parallel, delayed
from tqdm import tqdm

Key = tuple[object, ...]


class Finished(Protocol):
    """What a run is: a dataclass that knows what tells it from others."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def key(self) -> Key:
        """Two runs of one key are the same run."""


Run = TypeVar("Run", bound=Finished)


@dataclass(frozen=True)
class RunFile(Generic[Run]):
    """The file of a benchmark's runs."""

    path: Path
    parse: Callable[[dict[str, Any]], Run]
    """The fields of a line -> the run."""

    def read(self) -> dict[Key, Run]:
        """All finished runs, in the order in which they ended; none where there is no file.

        A last line that was being written when its process was killed is no finished run.
        """
        if not self.path.exists():
            return {}
        lines = _whole_lines(self.path.read_text()).splitlines()
        return {run.key: run for run in map(self.parse, map(json.loads, lines))}

    def complete(
        self,
        calls: Mapping[Key, Callable[[], Run]],
        *,
        jobs: int,
        minutes: float | None = None,
        again: Container[Key] = (),
    ) -> list[Run]:
        """Make the runs that are not there yet, each with one thread; a line as each ends.

        Args:
            calls: Key -> the run, in the order in which they begin.
            jobs: Processes.
            minutes: No run is begun later than this; None for no limit.
            again: Runs that are made again although they are there; the later line counts.

        Returns:
            All runs of these keys that are there now, in the order of the keys.
        """
        done = self.read()
        missing = [call for key, call in calls.items() if key not in done or key in again]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and (text := self.path.read_text()) != _whole_lines(text):
            self.path.write_text(_whole_lines(text))
        end = None if minutes is None else os.times().elapsed + 60 * minutes
        tasks = (delayed(_in_time)(call, end) for call in missing)
        made = Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks)
        for run in tqdm(made, "runs", total=len(missing)):
            if run is not None:
                done[run.key] = run
                with self.path.open("a") as stream:
                    stream.write(json.dumps(asdict(run)) + "\n")
        return [done[key] for key in calls if key in done]


def _in_time(call: Callable[[], Run], end: float | None) -> Run | None:
    if end is not None and os.times().elapsed >= end:
        return None
    torch.set_num_threads(1)
    return call()


def _whole_lines(text: str) -> str:
    return text[: text.rfind("\n") + 1]
