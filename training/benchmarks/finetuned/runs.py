"""Networks of others, pruned, repaired or not, and then trained; every finished run is a line.

Whatever a network starts from, it is trained alike: one, five or ten passes over the same few
labelled images that were not used for calibration. The controls are the other methods, no repair,
and the selector's small architecture with random weights. A second question is asked of the
selector's networks: how many labelled images does it take to train away what a repair mends?
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selector.data.forward import probe_inputs
from selector.errors import SelectorError
from selector.network.copying import copy_of
from selector.network.costs import count_costs
from selector.repair.reconstruction import reconstruct
from training.benchmarks.common.subjects import test_images, training_images
from training.benchmarks.networks.methods import RANK_MEAN, SELECTOR, always
from training.benchmarks.networks.pruning_task import PruningTask, RunSettings
from training.reporting.accuracy import accuracy, quick
from training.reporting.run_file import Key, RunFile
from training.zoo.recipes import Recipe, follow

FILE = "finetuned_runs.jsonl"
VERSION = 1
"""Changes when training does, so that earlier runs are not taken for new."""
NETWORKS = (
    "abdelhakk_smallresnet_fashion",
    "kgrabias_vgg6bn_cifar100",
    "bcom5_presqueezenetres_cifar10",
)
"""Three structures and three data sets, kept for tests."""
METHODS = (SELECTOR, always("l1"), RANK_MEAN, "torch-pruning taylor global")
CUTS = tuple(
    RunSettings(rounds=rounds, keep_macs=keep, test_images=2000)
    for rounds, keep in ((4, 0.5), (7, 0.3))
)
IMAGES = 1280
"""Of a short epoch."""
EPOCHS = (1, 5, 10)
PRUNED, REPAIRED, SCRATCH = "pruned", "repaired", "scratch"
FINE_TUNING = Recipe(epochs=1, learning_rate=0.01)
FROM_SCRATCH = Recipe(epochs=1, learning_rate=0.05)
"""Of random weights, which learn little at the rate of trained ones."""
LADDER = tuple(320 * 2**step for step in range(6))
"""Labelled images, each read once, by which training may reach what repair reaches."""


@dataclass(frozen=True)
class FinetunedRun:
    """One network pruned by one method, and what training made of it, as the file holds it.

    Accuracies are shares of the test images, 0 to 1; seconds are CPU time of one core.
    """

    network: str
    method: str
    settings: str
    """Changes with whatever the run depends on."""
    keep_macs: float
    draw: int
    """Which calibration images; also the seed of training."""
    macs_kept: float = 0.0
    unpruned: float = 0.0
    before: dict[str, float] = field(default_factory=dict)
    """Start -> accuracy before training."""
    after: dict[str, dict[str, float]] = field(default_factory=dict)
    """Start -> short epochs, as text -> accuracy after them."""
    repair_seconds: float = 0.0
    images_for_repair: int | None = None
    """Fewest images of the ladder by which training reached the repaired accuracy; None where
    none did or it was not asked."""
    seconds_for_repair: float | None = None
    """Time of that training."""
    failed: str | None = None
    """Why the method did not get to the end."""

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.network, self.method, self.settings

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "FinetunedRun":
        """Read a line of the file."""
        return cls(**fields)


def run_missing(
    tasks: Sequence[PruningTask], file: Path, jobs: int, minutes: float | None
) -> list[FinetunedRun]:
    """Make the runs that are not in the file yet; all runs of these tasks that are there."""
    calls: dict[Key, Callable[[], FinetunedRun]] = {
        _key(task): partial(run_one, task) for task in sorted(tasks, key=lambda t: t.settings.draw)
    }
    return RunFile(file, FinetunedRun.of).complete(calls, jobs=jobs, minutes=minutes)


def _key(task: PruningTask) -> Key:
    recipes = [asdict(recipe) for recipe in (FINE_TUNING, FROM_SCRATCH)]
    parts = repr((task.fingerprint, IMAGES, EPOCHS, LADDER, recipes, VERSION))
    return task.subject.name, task.method, hashlib.sha256(parts.encode()).hexdigest()[:12]


def run_one(task: PruningTask) -> FinetunedRun:
    """Prune, repair, train from every start."""
    network, method, settings = map(str, _key(task))
    found = FinetunedRun(network, method, settings, task.settings.keep_macs, task.settings.draw)
    model = task.subject.model(task.folders.weights)
    try:
        pruned = task.prune(model)
    except SelectorError as error:
        return replace(found, failed=str(error))
    began = time.process_time()
    repaired = reconstruct(model, pruned.model, task.batches, kept=pruned.kept()[-1]).model
    repair_seconds = time.process_time() - began
    starts = {PRUNED: pruned.model, REPAIRED: repaired}
    if method == SELECTOR:
        starts[SCRATCH] = with_random_weights(pruned.model, task.settings.draw)
    tests = test_images(task.subject, task.settings.test_images)
    probe = probe_inputs(model, tests)
    macs = [count_costs(one, probe).total("macs") for one in (model, pruned.model)]
    trained = {
        start: {epochs: _trained(task, one, start, epochs * IMAGES, epochs) for epochs in EPOCHS}
        for start, one in starts.items()
    }
    found = replace(
        found,
        macs_kept=macs[1] / macs[0],
        unpruned=accuracy(quick(model), tests),
        before={start: accuracy(quick(one), tests) for start, one in starts.items()},
        after={
            start: {str(epochs): share for epochs, (share, _) in some.items()}
            for start, some in trained.items()
        },
        repair_seconds=round(repair_seconds, 2),
    )
    if method != SELECTOR:
        return found
    return _caught_up(task, found, pruned.model, {IMAGES: trained[PRUNED][1]})


def _caught_up(
    task: PruningTask, found: FinetunedRun, pruned: nn.Module, known: dict[int, tuple[float, float]]
) -> FinetunedRun:
    """With the number of images by which training alone gets as far as the repair.

    Args:
        task: The network's task.
        found: What is known of the run.
        pruned: The network that was not repaired.
        known: Images -> accuracy and seconds of one pass over them that was made already.
    """
    for images in LADDER:
        reached, seconds = known.get(images) or _trained(task, pruned, PRUNED, images, 1)
        if reached >= found.before[REPAIRED]:
            return replace(found, images_for_repair=images, seconds_for_repair=round(seconds, 2))
    return found


def _trained(
    task: PruningTask, start: nn.Module, name: str, images: int, epochs: int
) -> tuple[float, float]:
    """Accuracy of a trained copy, and the seconds of training.

    Args:
        task: The network's task.
        start: What is trained; it stays as it is.
        name: Of the start.
        images: That are read in all.
        epochs: Passes in which they are read.
    """
    model = copy_of(start)
    data, info = training_images(task.subject, images // epochs)
    recipe = replace(FROM_SCRATCH if name == SCRATCH else FINE_TUNING, epochs=epochs)
    chance = torch.Generator().manual_seed(task.settings.draw)
    began = time.process_time()
    follow(recipe, model, data, info, name=task.subject.name, generator=chance)
    seconds = time.process_time() - began
    return accuracy(quick(model), test_images(task.subject, task.settings.test_images)), seconds


def with_random_weights(model: nn.Module, seed: int) -> nn.Module:
    """A copy with every layer as PyTorch initialises it.

    Raises:
        SelectorError: A module with parameters of its own that cannot be initialised anew.
    """
    fresh = copy_of(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, module in fresh.named_modules():
            if reset := getattr(module, "reset_parameters", None):
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise SelectorError(f"{name}: {type(module).__name__} cannot be initialised anew")
    return fresh
