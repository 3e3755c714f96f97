"""Does the lead last after a short fine-tune, the same for all methods?

Pruned to half the MACs in the rounds that `networks` takes up to there, then one epoch of SGD on a
few thousand training images. Every finished run is a line of a file, and is not run again.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from selector.data.forward import probe_inputs
from selector.network.costs import count_costs
from selector.tables import text_table
from training.benchmarks.common.subjects import test_images, training_images
from training.benchmarks.networks.methods import RANDOM, SELECTOR, VERIFY3, always
from training.benchmarks.networks.runs import PruningTask, RunSettings
from training.reporting.accuracy import accuracy, quick
from training.reporting.run_file import Key, RunFile
from training.zoo.recipes import Recipe, follow

FILE = "networks_tuned_runs.jsonl"
NETWORKS = ("founding_cifar10", "he_resnet20_cifar10", "cy_resnet20_cifar10")
METHODS = (SELECTOR, VERIFY3, RANDOM, always("l1"), always("taylor"), "torch-pruning taylor global")
HALF = 0.5
"""Share of the MACs that is left, or what the cuts of a curve come nearest to it."""
IMAGES = 5000
RECIPE = Recipe(epochs=1, learning_rate=0.01)


@dataclass(frozen=True)
class Tuned:
    """One network pruned by one method and fine-tuned, as the file holds it."""

    network: str
    method: str
    settings: str
    macs_kept: float
    accuracy_pruned: float
    """Top-1 on the test images right after pruning."""
    accuracy_tuned: float
    """And after the fine-tune."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others."""
        return self.network, self.method, self.settings


def settings_for(settings: RunSettings) -> RunSettings:
    """The same cuts as for a curve, ended when half of the MACs are left."""
    rounds = max(1, round(settings.rounds * math.log(HALF) / math.log(settings.keep_macs)))
    return replace(
        settings, rounds=rounds, keep_macs=settings.keep_macs ** (rounds / settings.rounds)
    )


def run_missing(
    tasks: Sequence[PruningTask], file: Path, jobs: int, minutes: float | None
) -> list[Tuned]:
    """Make the runs that are not in the file yet; all runs of these tasks that are there."""
    calls: dict[Key, Callable[[], Tuned]] = {_key(task): partial(tune, task) for task in tasks}
    return _file(file).complete(calls, jobs=jobs, minutes=minutes)


def _file(file: Path) -> RunFile[Tuned]:
    return RunFile(file, lambda fields: Tuned(**fields))


def _key(task: PruningTask) -> tuple[str, str, str]:
    parts = repr((task.fingerprint, IMAGES, asdict(RECIPE)))
    return task.subject.name, task.method, hashlib.sha256(parts.encode()).hexdigest()[:12]


def tune(task: PruningTask) -> Tuned:
    """Prune, read the test images, train, read them again."""
    model = task.subject.model(task.folders.weights)
    small = task.prune(model).model
    tests = test_images(task.subject, task.settings.test_images)
    probe = probe_inputs(model, tests)
    macs = [count_costs(network, probe).total("macs") for network in (model, small)]
    before = accuracy(quick(small), tests)
    data, info = training_images(task.subject, IMAGES)
    chance = torch.Generator().manual_seed(0)
    follow(RECIPE, small, data, info, name=task.subject.name, generator=chance)
    after = accuracy(quick(small), tests)
    return Tuned(*_key(task), macs[1] / macs[0], before, after)


def printed(runs: Sequence[Tuned]) -> str:
    """The runs as text."""
    rows = [
        [
            run.network,
            run.method,
            f"{100 * run.macs_kept:.1f}",
            f"{100 * run.accuracy_pruned:.1f}",
            f"{100 * run.accuracy_tuned:.1f}",
        ]
        for run in runs
    ]
    return text_table(["network", "method", "% MACs kept", "pruned", "fine-tuned"], rows)


def read(file: Path) -> list[Tuned]:
    """All finished runs."""
    return list(_file(file).read().values())
