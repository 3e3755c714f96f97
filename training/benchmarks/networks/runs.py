"""Is a network better after pruning when every layer follows the metric to trust there?

Foreign networks and held-out ones of the zoo, pruned in rounds by every method, without retraining:
one pruning of each network by each method gives its whole curve of accuracy over MACs, read on test
images after every round. What is left after each round is also repaired, by `reconstruct` with the
same images for every method, which gives a second curve. Every finished run is a line of a file,
and is not run again.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from selector.data.batches import Batches
from selector.data.forward import probe_inputs
from selector.data.image_data import TensorBatches
from selector.errors import SelectorError
from selector.network.copying import copy_of
from selector.network.costs import count_costs
from selector.network.tracing import find_groups
from selector.planning.plan import Plan
from selector.pruning.apply import FineTune
from selector.pruning.merge import combined
from selector.pruning.prune import prune
from selector.repair.correspondence import Kept, kept_after_cuts, kept_after_history
from selector.repair.reconstruction import reconstruct
from training.benchmarks.common.curves import LOW, CurvePoint
from training.benchmarks.common.subjects import (
    MAX_RATIO,
    Subject,
    calibration,
    find_subjects,
    test_images,
)
from training.benchmarks.networks.learnt import Learnt, digest_of, learn_without, opened
from training.benchmarks.networks.methods import (
    DRAWN,
    DRAWS,
    METHODS,
    Ours,
    Reconstructing,
)
from training.benchmarks.networks.reconstructing_rival import prune_and_reconstruct
from training.benchmarks.networks.torch_pruning_rival import History, prune_with_torch_pruning
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
    draw: int = 0
    """Which calibration images."""
    version: int = 2
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
    repaired: list[CurvePoint]
    """The same networks after repair."""
    oracle_forwards: int
    """Images times networks evaluated by the oracle in all."""
    seconds: float
    """Of one core, without repair and without reading the test images."""
    repair_seconds: float
    """Of one core, for one repair in the mean."""
    draw: int = 0
    failed: str | None = None
    """Why it did not reach the end."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others."""
        return self.network, self.method, self.settings

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "CurveRun":
        """Read a line of the file."""
        curves = {
            name: [CurvePoint(**point) for point in fields[name]] for name in ("points", "repaired")
        }
        return cls(**{**fields, **curves})


@dataclass(frozen=True, eq=False)
class Pruned:
    """What a method left of a network."""

    model: nn.Module
    kept: Callable[[], Sequence[Kept]]
    """The outputs that every layer still had, after each round."""
    oracle_forwards: int = 0


def _kept_after_plans(model: nn.Module, batches: Batches, plans: Sequence[Plan]) -> list[Kept]:
    groups = find_groups(model, probe_inputs(model, batches))
    wholes = [combined(plans[:count], groups, groups) for count in range(1, len(plans) + 1)]
    return [kept_after_cuts(model, whole.cuts) for whole in wholes]


def _kept_after_histories(
    model: nn.Module, batches: Batches, histories: Sequence[History]
) -> list[Kept]:
    probe = probe_inputs(model, batches)
    return [kept_after_history(model, history, probe) for history in histories]


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

    @property
    def batches(self) -> TensorBatches:
        """The calibration images."""
        return calibration(self.subject, self.settings.calibration_images, self.settings.draw)

    def prune(self, model: nn.Module, look: FineTune | None = None) -> Pruned:
        """Prune a copy.

        Args:
            model: The trained network.
            look: Called with the network and the number of the round after each.

        Raises:
            SelectorError: The method does not get to the end.
        """
        method = METHODS[self.method]
        if isinstance(method, Ours):
            return self._by_us(model, method, look)
        ways: dict[str, Any] = {
            "keep_macs": self.settings.keep_macs,
            "rounds": self.settings.rounds,
            "max_ratio": MAX_RATIO,
        }
        if isinstance(method, Reconstructing):
            small, plans = prune_and_reconstruct(model, self.batches, look=look, **ways)
            return Pruned(small, partial(_kept_after_plans, model, self.batches, plans))
        found = prune_with_torch_pruning(
            model, self.batches, method.importance, method.ranking, finetune=look, **ways
        )
        kept = partial(_kept_after_histories, model, self.batches, found.histories)
        return Pruned(found.model, kept)

    def _by_us(self, model: nn.Module, method: Ours, look: FineTune | None) -> Pruned:
        folder = self._advised_by(method)
        result = prune(
            model,
            self.batches,
            selector=None if folder is None else opened(folder),
            rounds=self.settings.rounds,
            max_ratio=MAX_RATIO,
            finetune=look,
            keep_macs=self.settings.keep_macs,
            repair=False,
            **method.options,
        )
        kept = partial(_kept_after_plans, model, self.batches, result.rounds)
        return Pruned(result.model, kept, result.report.oracle_images)

    def _advised_by(self, method: Ours) -> Path | None:
        advisers = {"selector": self.learnt.selector, "portfolio": self.learnt.portfolio}
        return advisers.get(method.learnt)


def tasks_for(
    subjects: Sequence[Subject], methods: Sequence[str], settings: RunSettings, folders: Folders
) -> list[PruningTask]:
    """Every network by every method, method after method; those of `DRAWN` first, draw after draw.

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
    drawn = [method for method in DRAWN if method in methods]
    again = [(method, draw) for draw in range(DRAWS) for method in drawn]
    once = [(method, 0) for method in methods if method not in drawn]
    return [
        PruningTask(subject, method, learnt[subject], replace(settings, draw=draw), folders)
        for method, draw in again + once
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
    """Prune once, from the unpruned network to the end of the curve, and repair every round's."""
    model = task.subject.model(task.folders.weights)
    watch = Watch(task, model)
    failed, forwards, repaired, seconds = None, 0, list[CurvePoint](), 0.0
    try:
        pruned = task.prune(model, watch.look)
        forwards, pruning_seconds = pruned.oracle_forwards, watch.seconds
        repaired, seconds = watch.repaired(model, pruned.kept())
    except SelectorError as error:
        failed, pruning_seconds = str(error), watch.seconds
    return CurveRun(
        network=task.subject.name,
        method=task.method,
        settings=task.fingerprint,
        points=watch.points,
        repaired=repaired,
        oracle_forwards=forwards,
        seconds=round(pruning_seconds, 2),
        repair_seconds=round(seconds, 2),
        draw=task.settings.draw,
        failed=failed,
    )


@cache
def _unpruned_accuracy(subject: Subject, settings: RunSettings, folders: Folders) -> float:
    model = quick(subject.model(folders.weights))
    return accuracy(model, test_images(subject, settings.test_images))


class Watch:
    """Looks at a network after every round, and stops the clock meanwhile."""

    def __init__(self, task: PruningTask, model: nn.Module) -> None:
        settings, self._batches = task.settings, task.batches
        self._probe = probe_inputs(model, self._batches)
        self._images = test_images(task.subject, settings.test_images)
        self._start = count_costs(model, self._probe)
        self.points = [
            CurvePoint(1.0, 0.0, _unpruned_accuracy(task.subject, settings, task.folders))
        ]
        self._left: list[nn.Module] = []
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
        self._left.append(copy_of(model))
        self._began += time.process_time() - stopped

    def repaired(self, original: nn.Module, kept: Sequence[Kept]) -> tuple[list[CurvePoint], float]:
        """The curve of the networks that were looked at, each repaired; seconds of one repair.

        Raises:
            SelectorError: A network that cannot be repaired.
        """
        seconds, curve = 0.0, self.points[:1]
        for left, outputs, point in zip(self._left, kept, self.points[1:], strict=True):
            began = time.process_time()
            found = reconstruct(original, left, self._batches, kept=outputs).model
            seconds += time.process_time() - began
            curve.append(replace(point, accuracy=accuracy(quick(found), self._images)))
        return curve, seconds / max(1, len(self._left))
