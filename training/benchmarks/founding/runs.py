"""Does a composition of metrics beat each metric alone, and can the same be had for a tenth?

The experiment of arXiv 2004.03376 on its three networks, without retraining: how much of the
convolutions' weights goes until top-1 on the test images has fallen 5 points; then our additions,
one at a time, and together. Every finished run is a line of a file, and is not run again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selector.data.batches import Batches
from selector.data.forward import probe_inputs
from selector.data.image_data import TensorBatches
from selector.data.sampling import Draw
from selector.errors import SelectorError
from selector.network.copying import copy_of
from selector.network.tracing import find_groups
from selector.planning.composition.compose import Step, compose_myopically, of_convolutions
from training.benchmarks.founding.methods import METHODS
from training.datasets.catalogue import load
from training.reporting.accuracy import Images, correct, laid_out, quick
from training.reporting.result_file import RESULTS
from training.reporting.run_file import Key, RunFile
from training.zoo.third_party import foreign_batches, load_foreign

NETWORKS = ("founding_lenet-5", "founding_cifar10", "founding_resnet-20")
REPEATS = 8
DRAWN_FROM = 5000
"""Training images that a run draws from; the test images are halved for `held-out`."""
STRIDE = 4
"""Channels between two readings of the test accuracy; around the crossing each step is read."""
DROP, STOP = 0.05, 0.08
"""Fall in top-1 that is asked about, and the one after which a run ends."""
FOLDER = RESULTS
FILE = "founding_runs.jsonl"
"""Every finished run, so that the benchmark goes on where it was, here or elsewhere."""


@dataclass(frozen=True)
class FoundingPoint:
    """The network at one moment of a run."""

    removed: float
    """Share of the convolutions' weights that is gone."""
    accuracy: tuple[float, float]
    """Top-1 on the first and on the second half of the test images."""
    oracle_forwards: int
    scoring_forwards: int
    channels: Mapping[str, int]
    """Group -> channels removed."""


@dataclass(frozen=True)
class FoundingRun:
    """One finished run, as the file holds it."""

    network: str
    method: str
    repeat: int
    points: list[FoundingPoint]
    held_out: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from others."""
        return self.network, self.method, self.repeat

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "FoundingRun":
        """Read a line of the file."""
        points = [
            FoundingPoint(**{**p, "accuracy": tuple(p["accuracy"])}) for p in fields["points"]
        ]
        return cls(**{**fields, "points": points})


def read_runs(folder: Path) -> list[FoundingRun]:
    """All finished runs, in the order in which they ended."""
    return list(RunFile(folder / FILE, FoundingRun.of).read().values())


def run_missing(
    networks: Iterable[str],
    methods: Iterable[str],
    repeats: int,
    jobs: int,
    minutes: float | None,
    folder: Path = FOLDER,
) -> list[FoundingRun]:
    """Run what is not in the file yet, repeat by repeat; return all runs of these in the file.

    Raises:
        SelectorError: An unknown network or method.
    """
    wanted = [(n, m, r) for r in range(repeats) for n in networks for m in methods]
    for network, method, _ in wanted:
        if network not in NETWORKS:
            raise SelectorError(f"unknown network {network!r}; known: {', '.join(NETWORKS)}")
        if method not in METHODS:
            raise SelectorError(f"unknown method {method!r}; known: {'; '.join(METHODS)}")
    calls: dict[Key, Callable[[], FoundingRun]] = {key: partial(run_one, *key) for key in wanted}
    return RunFile(folder / FILE, FoundingRun.of).complete(calls, jobs=jobs, minutes=minutes)


def run_one(network: str, name: str, repeat: int) -> FoundingRun:
    """Prune once; every repeat draws other images."""
    method = METHODS[name]
    model = load_foreign(network)
    pool, test = _batches(network)
    if method.held_out:
        pool = test.subset(torch.arange(len(test.data) // 2))
    groups = of_convolutions(model, find_groups(model, probe_inputs(model, pool)))
    generator = torch.Generator().manual_seed(repeat)
    steps = compose_myopically(model, groups, _draw(pool), method.myopic, generator=generator)
    trace = _Trace(network, groups.costs.total("weights"))
    points = list(trace.follow(steps))
    return FoundingRun(network, name, repeat, points, method.held_out)


@cache
def _batches(network: str) -> tuple[TensorBatches, TensorBatches]:
    """The fixed training images, all lossless, and all the test images."""
    train, test = load("cifar10", "train", limit=DRAWN_FROM), load("cifar10", "test")
    return foreign_batches(network, train, 256), foreign_batches(network, test, 250)


def _draw(pool: TensorBatches) -> Draw:
    def draw(images: int, generator: torch.Generator) -> Batches:
        chosen = torch.randperm(len(pool.data), generator=generator)[:images]
        return list(pool.subset(chosen))

    return draw


@cache
def _test_images(network: str) -> Images:
    """The test images as they are fed to the network."""
    return laid_out(_batches(network)[1])


@cache
def _unpruned_halves(network: str) -> tuple[float, float]:
    return _halves(network, load_foreign(network))


def _halves(network: str, model: nn.Module) -> tuple[float, float]:
    """Top-1 on the first and on the second half of the test images."""
    found = correct(quick(model), _test_images(network))
    first, second = found.double().view(2, -1).mean(1).tolist()
    return first, second


@dataclass
class _Trace:
    """Reads the test accuracy of a network that is being pruned: seldom, then often enough."""

    network: str
    weights: float
    channels: dict[str, int] = field(default_factory=dict)
    unread: list[tuple[nn.Module, Step, dict[str, int]]] = field(default_factory=list)

    def follow(self, steps: Iterator[Step]) -> Iterator[FoundingPoint]:
        """The points of a run, until top-1 has fallen far enough."""
        start = FoundingPoint(0.0, _unpruned_halves(self.network), 0, 0, {})
        base = sum(start.accuracy) / 2
        crossed = False
        yield start
        for step in steps:
            for group, _ in step.removed:
                self.channels[group] = self.channels.get(group, 0) + 1
            self.unread.append((copy_of(step.network), step, dict(self.channels)))
            if sum(len(s.removed) for _, s, _ in self.unread) < STRIDE:
                continue
            last = self._point(*self.unread.pop())
            fall = base - sum(last.accuracy) / 2
            if fall > DROP and not crossed:
                crossed = True
                yield from (self._point(*snapshot) for snapshot in self.unread)
            self.unread.clear()
            yield last
            if fall > STOP:
                return

    def _point(self, model: nn.Module, step: Step, channels: Mapping[str, int]) -> FoundingPoint:
        removed = 1 - step.costs.total("weights") / self.weights
        forwards = step.oracle_forwards, step.scoring_forwards
        return FoundingPoint(removed, _halves(self.network, model), *forwards, channels)
