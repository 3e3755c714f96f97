"""Is a network better after pruning when every layer follows the metric to trust there?

Foreign networks and held-out ones of the zoo, pruned in rounds by every method, without retraining:
one pruning of each network by each method gives its whole curve of accuracy over MACs, read on test
images after every round. What is left after each round is also repaired, by `reconstruct` with the
same images for every method, which gives a second curve. Every finished run is a line of a file,
and is not run again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from selector.data.forward import probe_inputs
from selector.errors import SelectorError
from selector.network.copying import copy_of
from selector.network.costs import count_costs
from selector.repair.correspondence import Kept
from selector.repair.reconstruction import reconstruct
from training.benchmarks.common.curves import CurvePoint
from training.benchmarks.common.subjects import (
    Subject,
    test_images,
)
from training.benchmarks.networks.pruning_task import (
    Folders,
    PruningTask,
    RunSettings,
)
from training.reporting.accuracy import accuracy, quick
from training.reporting.run_file import Key, RunFile

FILE = "networks_runs.jsonl"


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
