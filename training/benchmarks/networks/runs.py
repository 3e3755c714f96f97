"""Is a network better after pruning when every layer follows the metric to trust there?

Foreign networks and held-out ones of the zoo, pruned in rounds by every method, without retraining:
one pruning of each network by each method gives its whole curve of accuracy over MACs, read on test
images after every round. Every finished run is a line of a file, and is not run again.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from selector.data.forward import probe_inputs
from selector.errors import SelectorError
from selector.network.costs import count_costs
from selector.pruning.apply import FineTune
from selector.pruning.prune import prune
from training.benchmarks.common.curves import LOW, CurvePoint
from training.benchmarks.common.subjects import (
    MAX_RATIO,
    Subject,
    calibration,
    find_subjects,
    test_images,
)
from training.benchmarks.networks.learnt import Learnt, digest_of, learn_without, opened
from training.benchmarks.networks.methods import METHODS, Ours
from training.benchmarks.networks.torch_pruning_rival import prune_with_torch_pruning
from training.reporting.accuracy import accuracy, quick
from training.reporting.run_file import Key, RunFile

FILE = "networks_runs.jsonl"


@dataclass(frozen=True)
class RunSettings:
    """What is the same for all methods."""

    rounds: int = 7
    """Cuts; the MACs fall by the same factor in each, and the curve has a point after each."""
    calibration_images: int = 256
    test_images: int = 1000
    keep_macs: float = LOW
    version: int = 1
    """Changes when pruning does, so that runs made before are not taken for new ones."""


@dataclass(frozen=True)
class Folders:
    """Where things lie."""

    data: Path
    """Records."""
    weights: Path
    """Trained weights of the zoo."""
    learnt: Path
    """Selectors that were fitted without a network's family."""


@dataclass(frozen=True)
class CurveRun:
    """One finished run, as the file holds it."""

    network: str
    method: str
    settings: str
    """Changes with whatever the run depends on."""
    points: list[CurvePoint]
    """From the unpruned network on."""
    oracle_forwards: int
    """Images times networks evaluated by the oracle in all."""
    seconds: float
    """Of one core, without reading the test images."""
    failed: str | None = None
    """Why it did not reach the end."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others."""
        return self.network, self.method, self.settings

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "CurveRun":
        """Read a line of the file."""
        return cls(**{**fields, "points": [CurvePoint(**point) for point in fields["points"]]})


@dataclass(frozen=True)
class PruningTask:
    """One network and one method, with all that the run depends on."""

    subject: Subject
    method: str
    learnt: Learnt
    settings: RunSettings
    folders: Folders

    @property
    def key(self) -> tuple[str, str, str]:
        """That of its run."""
        return self.subject.name, self.method, self.fingerprint

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits that change with whatever the run depends on."""
        method = METHODS[self.method]
        parts: list[object] = [self.subject.weights, asdict(self.settings), method.what]
        if isinstance(method, Ours):
            folder = self._advised_by(method)
            parts.append(folder and digest_of(folder))
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def prune(self, model: nn.Module, finetune: FineTune | None = None) -> tuple[nn.Module, int]:
        """The pruned copy, and the oracle's image forwards."""
        method, images = METHODS[self.method], self.settings.calibration_images
        batches = calibration(self.subject, images)
        if not isinstance(method, Ours):
            small = prune_with_torch_pruning(
                model,
                batches,
                method.importance,
                method.ranking,
                keep_macs=self.settings.keep_macs,
                rounds=self.settings.rounds,
                max_ratio=MAX_RATIO,
                finetune=finetune,
            )
            return small, 0
        folder = self._advised_by(method)
        result = prune(
            model,
            batches,
            selector=None if folder is None else opened(folder),
            rounds=self.settings.rounds,
            max_ratio=MAX_RATIO,
            finetune=finetune,
            keep_macs=self.settings.keep_macs,
            **method.options,
        )
        return result.model, result.report.oracle_images

    def _advised_by(self, method: Ours) -> Path | None:
        advisers = {"selector": self.learnt.selector, "portfolio": self.learnt.portfolio}
        return advisers.get(method.learnt)


def tasks_for(
    subjects: Sequence[Subject], methods: Sequence[str], settings: RunSettings, folders: Folders
) -> list[PruningTask]:
    """Every network by every method, method after method.

    Raises:
        SelectorError: An unknown method.
    """
    for method in methods:
        if method not in METHODS:
            raise SelectorError(f"unknown method {method!r}; known: {'; '.join(METHODS)}")
    judged = find_subjects(folders.data)
    for subject in subjects:
        subject.model(folders.weights)  # Trained here if at all, and not by two runs at a time.
    learnt = {s: learn_without(s, judged, folders.data, folders.learnt) for s in subjects}
    return [
        PruningTask(subject, method, learnt[subject], settings, folders)
        for method in methods
        for subject in subjects
        if (only := METHODS[method].networks) is None or subject.name in only
    ]


def default_methods() -> list[str]:
    """The methods that are run unless others are asked for."""
    return [name for name, method in METHODS.items() if method.default]


def run_missing(
    tasks: Sequence[PruningTask], file: Path, jobs: int, minutes: float | None
) -> list[CurveRun]:
    """Run what is not in the file yet; return all runs of these tasks in the file."""
    calls: dict[Key, Callable[[], CurveRun]] = {task.key: partial(run_one, task) for task in tasks}
    return RunFile(file, CurveRun.of).complete(calls, jobs=jobs, minutes=minutes)


def finished(tasks: Sequence[PruningTask], file: Path) -> list[CurveRun]:
    """The runs of these tasks that are in the file, as they would be made today."""
    found = RunFile(file, CurveRun.of).read()
    return [found[task.key] for task in tasks if task.key in found]


def run_one(task: PruningTask) -> CurveRun:
    """Prune once, from the unpruned network to the end of the curve."""
    model = task.subject.model(task.folders.weights)
    watch = Watch(task, model)
    failed, forwards = None, 0
    try:
        _, forwards = task.prune(model, watch.look)
    except SelectorError as error:
        failed = str(error)
    return CurveRun(
        network=task.subject.name,
        method=task.method,
        settings=task.fingerprint,
        points=watch.points,
        oracle_forwards=forwards,
        seconds=round(watch.seconds, 2),
        failed=failed,
    )


@cache
def _unpruned_accuracy(subject: Subject, settings: RunSettings, folders: Folders) -> float:
    model = quick(subject.model(folders.weights))
    return accuracy(model, test_images(subject, settings.test_images))


class Watch:
    """Looks at a network after every round, and stops the clock meanwhile."""

    def __init__(self, task: PruningTask, model: nn.Module) -> None:
        settings = task.settings
        self._probe = probe_inputs(model, calibration(task.subject, settings.calibration_images))
        self._images = test_images(task.subject, settings.test_images)
        self._start = count_costs(model, self._probe)
        self.points = [
            CurvePoint(1.0, 0.0, _unpruned_accuracy(task.subject, settings, task.folders))
        ]
        self._began = time.process_time()

    @property
    def seconds(self) -> float:
        """Of one core, since the beginning or the end of the last look."""
        return time.process_time() - self._began

    def look(self, model: nn.Module, number: int) -> None:
        """Add a point to the curve; the signature is that of `finetune=`."""
        stopped = time.process_time()
        costs = count_costs(model, self._probe)
        kept, left = (costs.total(m) / self._start.total(m) for m in ("macs", "weights"))
        right = accuracy(quick(model), self._images)
        self.points.append(CurvePoint(round(kept, 6), round(1 - left, 6), right))
        self._began += time.process_time() - stopped
