"""Does the lead last after training, the same for all methods, with and without repair before it?

Pruned to half the MACs in the rounds that `networks` takes up to there, repaired or not, then one
epoch or five of SGD on a few thousand training images. Every finished run is a line of a file, and
is not run again.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean

import torch

from selector.data.forward import probe_inputs
from selector.network.costs import count_costs
from selector.repair.reconstruction import reconstruct
from selector.tables import text_table
from training.benchmarks.common.subjects import test_images, training_images
from training.benchmarks.networks.methods import SELECTOR, always
from training.benchmarks.networks.pruning_task import PruningTask, RunSettings
from training.reporting.accuracy import accuracy, quick
from training.reporting.run_file import Key, RunFile
from training.zoo.recipes import Recipe, follow

FILE = "networks_tuned_runs.jsonl"
NETWORKS = ("founding_cifar10", "he_resnet20_cifar10", "cy_resnet20_cifar10")
METHODS = (SELECTOR, always("l1"), always("reconstruction"), "torch-pruning taylor global")
HALF = 0.5
"""Share of the MACs that is left, or what the cuts of a curve come nearest to it."""
IMAGES = 5000
EPOCHS = (1, 5)
RECIPES = {epochs: Recipe(epochs=epochs, learning_rate=0.01) for epochs in EPOCHS}


@dataclass(frozen=True)
class Tuned:
    """One network pruned by one method and fine-tuned, as the file holds it."""

    network: str
    method: str
    settings: str
    repaired: bool
    """Whether what pruning left was repaired before it was trained."""
    epochs: int
    macs_kept: float
    accuracy_pruned: float
    """Top-1 on the test images after pruning, and repair where there was one."""
    accuracy_tuned: float
    """And after the fine-tune."""

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.network, self.method, self.settings, self.repaired, self.epochs


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
    calls: dict[Key, Callable[[], Tuned]] = {
        (*_names(task), repaired, epochs): partial(tune, task, repaired, epochs)
        for epochs in EPOCHS
        for repaired in (False, True)
        for task in tasks
        if not task.settings.draw
    }
    return _file(file).complete(calls, jobs=jobs, minutes=minutes)


def _file(file: Path) -> RunFile[Tuned]:
    return RunFile(file, lambda fields: Tuned(**fields))


def _names(task: PruningTask) -> tuple[str, str, str]:
    recipes = [asdict(recipe) for recipe in RECIPES.values()]
    parts = repr((task.fingerprint, IMAGES, recipes))
    return task.subject.name, task.method, hashlib.sha256(parts.encode()).hexdigest()[:12]


def tune(task: PruningTask, repaired: bool, epochs: int) -> Tuned:
    """Prune, repair if so, read the test images, train, read them again."""
    model = task.subject.model(task.folders.weights)
    pruned = task.prune(model)
    small = pruned.model
    if repaired:
        small = reconstruct(model, small, task.batches, kept=pruned.kept()[-1]).model
    tests = test_images(task.subject, task.settings.test_images)
    probe = probe_inputs(model, tests)
    macs = [count_costs(network, probe).total("macs") for network in (model, small)]
    before = accuracy(quick(small), tests)
    data, info = training_images(task.subject, IMAGES)
    chance = torch.Generator().manual_seed(0)
    follow(RECIPES[epochs], small, data, info, name=task.subject.name, generator=chance)
    after = accuracy(quick(small), tests)
    return Tuned(*_names(task), repaired, epochs, macs[1] / macs[0], before, after)


def printed(runs: Sequence[Tuned]) -> str:
    """The runs as text."""
    rows = [
        [
            run.network,
            run.method,
            "yes" if run.repaired else "no",
            f"{100 * run.macs_kept:.1f}",
            f"{100 * run.accuracy_pruned:.1f}",
            str(run.epochs),
            f"{100 * run.accuracy_tuned:.1f}",
        ]
        for run in sorted(runs, key=lambda one: (one.network, one.epochs, one.method))
    ]
    columns = ["network", "method", "repaired", "% MACs kept", "before", "epochs", "trained"]
    return text_table(columns, rows)


def summary_of(runs: Sequence[Tuned]) -> dict[str, float]:
    """What repair is worth before and after training, in points: means over all pairs."""
    found = {(run.network, run.method, run.epochs, run.repaired): run for run in runs}
    summary: dict[str, float] = {}
    for epochs in EPOCHS:
        pairs = [
            (run, found[network, method, epochs, True])
            for (network, method, number, repaired), run in found.items()
            if number == epochs and not repaired and (network, method, epochs, True) in found
        ]
        if pairs:
            start = [100 * (two.accuracy_pruned - one.accuracy_pruned) for one, two in pairs]
            end = [100 * (two.accuracy_tuned - one.accuracy_tuned) for one, two in pairs]
            summary[f"repair_points_before_{epochs}_epochs"] = round(mean(start), 2)
            summary[f"repair_points_after_{epochs}_epochs"] = round(mean(end), 2)
            summary[f"tuned_pairs_{epochs}_epochs"] = len(pairs)
    return summary


def read(file: Path) -> list[Tuned]:
    """All finished runs."""
    return list(_file(file).read().values())
