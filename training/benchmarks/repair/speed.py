"""Time of one repair over that of one scoring pass (forward and backward) of the same images.

Both in turns, on one core, in CPU time, which other work on the machine hardly changes. Weights and
images are random, with BatchNorm's statistics from a batch: they do not change the time.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from selector.network.batchnorm import recalibrate_batchnorm
from selector.pruning.prune import prune
from selector.pruning.result import PruneResult
from selector.repair.reconstruction import reconstruct
from training.benchmarks.repair.runs import scoring_pass
from training.reporting.run_file import Key, RunFile
from training.zoo.third_party_networks import HeResNet

FILE = "repair_speed.jsonl"
VERSION = 1
"""Changes when the repair's speed does."""


@dataclass(frozen=True)
class TimedNetwork:
    """A network whose repair is timed."""

    build: Callable[[], nn.Module]
    size: int
    """Height and width of the images, in pixels."""
    classes: int
    images: int
    batch: int
    repeats: int


SUBJECTS: Mapping[str, TimedNetwork] = {
    "resnet56": TimedNetwork(partial(HeResNet, 56), 32, 10, 256, 64, 3),
    "mobilenet_v2": TimedNetwork(torchvision.models.mobilenet_v2, 96, 1000, 256, 32, 3),
    "resnet50": TimedNetwork(torchvision.models.resnet50, 224, 1000, 256, 16, 1),
}


@dataclass(frozen=True)
class SpeedRun:
    """One network, as the file holds it."""

    network: str
    size: int
    images: int
    repeats: int
    version: int
    scoring_seconds: float
    """Median over the repeats, as the next."""
    repair_seconds: float

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.network, self.size, self.images, self.repeats, self.version

    @property
    def ratio(self) -> float:
        """Repair over scoring pass."""
        return self.repair_seconds / self.scoring_seconds

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "SpeedRun":
        """Read a line of the file."""
        return cls(**fields)


def run_missing(names: Sequence[str], file: Path, minutes: float | None) -> list[SpeedRun]:
    """Time what is not in the file yet; return all that is there."""
    calls: dict[Key, Callable[[], SpeedRun]] = {_key(n): partial(run_one, n) for n in names}
    return RunFile(file, SpeedRun.of).complete(calls, jobs=1, minutes=minutes)


def finished(file: Path) -> list[SpeedRun]:
    """What is in the file, as it would be timed today."""
    found = RunFile(file, SpeedRun.of).read()
    return [found[key] for key in map(_key, SUBJECTS) if key in found]


def run_one(name: str) -> SpeedRun:
    """Prune evenly by L1 to half the MACs, then time scoring and repair in turns."""
    subject = SUBJECTS[name]
    model, images, pruned = set_up(subject)
    scoring, repair = [], []
    for _ in range(subject.repeats):
        scoring.append(_seconds(partial(scoring_pass, model, images)))
        model.zero_grad(set_to_none=True)
        repair.append(_seconds(partial(reconstruct, model, pruned, images)))
    times = round(median(scoring), 3), round(median(repair), 3)
    return SpeedRun(name, subject.size, subject.images, subject.repeats, VERSION, *times)


def set_up(subject: TimedNetwork) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], PruneResult]:
    """The unpruned network, labelled images in batches, and the pruned network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = subject.build().eval()
        inputs = torch.randn(subject.images, 3, subject.size, subject.size)
        labels = torch.randint(subject.classes, (subject.images,))
    parts = (torch.split(whole, subject.batch) for whole in (inputs, labels))
    images = list(zip(*parts, strict=True))
    recalibrate_batchnorm(model, images[:1])
    pruned = prune(
        model,
        images[:1],
        criterion="l1",
        keep_macs=0.5,
        rounds=1,
        recalibrate=False,
        repair=False,
    )
    return model, images, pruned


def _key(name: str) -> Key:
    subject = SUBJECTS[name]
    return name, subject.size, subject.images, subject.repeats, VERSION


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
