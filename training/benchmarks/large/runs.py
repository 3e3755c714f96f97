"""How much accuracy does EfficientNet-Lite1 lose at 90, 80, 70 and 60 % of its MACs?

Every method cuts the network in four steps that end at these shares. What each step left is read on
the test images, then repaired by `reconstruct` with the same calibration images for every method,
and read again. Nothing is trained. Every finished run is a line of a file, and is not run again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from selector.data.forward import probe_inputs
from selector.errors import SelectorError
from selector.learning.artefact import shipped_file
from selector.network.costs import count_costs
from selector.pruning.prune import prune
from selector.repair.correspondence import Kept, kept_after_cuts, kept_after_history
from selector.repair.reconstruction import reconstruct
from training.benchmarks.large.network import (
    CALIBRATION_IMAGES,
    TEST_IMAGES,
    image_batches,
    load_network,
)
from training.benchmarks.networks.learnt import digest_of
from training.benchmarks.networks.methods import (
    DEFAULT,
    METHODS,
    RANK_MEAN,
    SELECTOR,
    Ours,
    Theirs,
    always,
)
from training.benchmarks.networks.torch_pruning_rival import prune_with_torch_pruning
from training.reporting.accuracy import Images, accuracy, quick
from training.reporting.run_file import Key, RunFile
from training.zoo.shared_third_party import PreparedBatches

FILE = "large_runs.jsonl"
VERSION = 2
"""Changes when pruning or repair does, so that runs made before are not taken for new ones."""
TARGETS = (0.9, 0.8, 0.7, 0.6)
"""Shares of the multiply-accumulates at which the steps of every method end."""
FIRST = (0.8, 0.7)
"""The shares that are read first, since the claims are about them."""
L1, TORCH_PRUNING = always("l1"), "torch-pruning taylor global"
RECONSTRUCTION_FISHER = always("reconstruction_fisher")
NAMES = (SELECTOR, L1, TORCH_PRUNING, DEFAULT, RECONSTRUCTION_FISHER, always("taylor"), RANK_MEAN)
"""Of `METHODS`, the most telling first; but for the two selectors', our widths are even."""


@dataclass(frozen=True)
class LargeRun:
    """The network pruned by one method to one share of its MACs."""

    method: str
    target: float
    """Share of the multiply-accumulates that stays at most."""
    version: int
    selector: str
    """What tells the selector from others; empty where none is asked."""
    unpruned: float | None = None
    """Share of the test images that are classified right, as the next two."""
    pruned: float | None = None
    repaired: float | None = None
    macs_kept: float | None = None
    weights_removed: float | None = None
    """Share of the unpruned network's convolution weights."""
    seconds: float = 0.0
    """CPU time of all cuts up to here, without repair and without reading the test images."""
    repair_seconds: float = 0.0
    """CPU time of the repair."""
    failed: str | None = None
    """Why it did not get here."""

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.method, self.target, self.version, self.selector

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "LargeRun":
        """Read a line of the file."""
        return cls(**fields)


def begun(method: str, target: float) -> LargeRun:
    """The run of a method and a target as it would be made today, before it is made."""
    asked = METHODS[method]
    learnt = isinstance(asked, Ours) and asked.learnt != "nothing"
    return LargeRun(method, target, VERSION, digest_of(shipped_file("selector")) if learnt else "")


def run_missing(methods: Sequence[str], file: Path, minutes: float | None) -> list[LargeRun]:
    """Make the runs that are not in the file yet, in one process: all of `FIRST`, then the others.

    Args:
        methods: Some of `NAMES`.
        file: Where finished runs are.
        minutes: No run is begun later than this.

    Returns:
        All runs of these methods that are in the file now.

    Raises:
        SelectorError: An unknown method.
    """
    for method in methods:
        if method not in NAMES:
            raise SelectorError(f"unknown method {method!r}; known: {'; '.join(NAMES)}")
    others = tuple(target for target in TARGETS if target not in FIRST)
    wanted = [
        begun(method, target)
        for targets in (FIRST, others)
        for method in methods
        for target in targets
    ]
    calls: dict[Key, Callable[[], LargeRun]] = {one.key: partial(run_one, one) for one in wanted}
    return RunFile(file, LargeRun.of).complete(calls, jobs=1, minutes=minutes)


def finished(file: Path) -> list[LargeRun]:
    """The runs in the file as they would be made today, method after method."""
    found = RunFile(file, LargeRun.of).read()
    keys = [begun(method, target).key for method in NAMES for target in TARGETS]
    return [found[key] for key in keys if key in found]


def run_one(begun: LargeRun) -> LargeRun:
    """Cut as far as asked, read the test images, repair, and read them again."""
    model, images, tests = _network(), _calibration(), _tests()
    found = replace(begun, unpruned=_unpruned())
    try:
        step = _cuts(begun.method).up_to(begun.target)
        costs = [count_costs(one, probe_inputs(model, images)) for one in (model, step.model)]
        macs, weights = (costs[1].total(m) / costs[0].total(m) for m in ("macs", "weights"))
        found = replace(
            found,
            macs_kept=round(macs, 6),
            weights_removed=round(1 - weights, 6),
            seconds=round(step.seconds, 2),
            pruned=accuracy(quick(step.model), tests),
        )
        began = time.process_time()
        repaired = reconstruct(model, step.model, images, kept=step.kept).model
        seconds = round(time.process_time() - began, 2)
        return replace(found, repaired=accuracy(quick(repaired), tests), repair_seconds=seconds)
    except SelectorError as error:
        return replace(found, failed=str(error))


@dataclass(frozen=True, eq=False)
class _Step:
    """What a cut left, in outputs of the unpruned network, and CPU time up to there."""

    model: nn.Module
    kept: Kept
    macs: float
    seconds: float


@dataclass(eq=False)
class _Cuts:
    """The cuts of one method, each of what the one before left; made when they are asked for."""

    method: str
    steps: list[_Step] = field(default_factory=list)

    def up_to(self, target: float) -> _Step:
        """What is left at one of `TARGETS`.

        Raises:
            SelectorError: The method does not get there.
        """
        probe = probe_inputs(_network(), _calibration())
        whole = count_costs(_network(), probe).total("macs")
        number = TARGETS.index(target)
        while len(self.steps) <= number:
            last = self.steps[-1] if self.steps else _Step(_network(), {}, whole, 0.0)
            began = time.process_time()
            keep = TARGETS[len(self.steps)] * whole / last.macs
            model, kept = cut(last.model, METHODS[self.method], _calibration(), keep)
            seconds = last.seconds + time.process_time() - began
            macs = count_costs(model, probe).total("macs")
            self.steps.append(_Step(model, followed(last.kept, kept()), macs, seconds))
        return self.steps[number]


def cut(
    model: nn.Module, method: object, batches: PreparedBatches, keep_macs: float
) -> tuple[nn.Module, Callable[[], Kept]]:
    """Prune a copy in one cut, without repair.

    Args:
        model: The network as it is.
        method: One of `METHODS`.
        batches: Images for scores and recalibration.
        keep_macs: Share of its multiply-accumulates that stays at most.

    Returns:
        The pruned copy, and what tells the outputs that every layer still has.

    Raises:
        SelectorError: The method does not get there.
    """
    if isinstance(method, Ours):
        result = prune(
            model, batches, keep_macs=keep_macs, rounds=1, repair=False, **method.options
        )
        return result.model, partial(kept_after_cuts, model, result.cuts)
    assert isinstance(method, Theirs)
    small, (history,) = prune_with_torch_pruning(
        model, batches, method.importance, method.ranking, keep_macs=keep_macs, rounds=1
    )
    return small, partial(kept_after_history, model, history, probe_inputs(model, batches))


def followed(before: Kept, after: Kept) -> dict[str, Sequence[int]]:
    """Outputs that are left after two cuts, in positions of the network before the first.

    Args:
        before: What the first cut left; layers that lost nothing may be missing.
        after: What the second left of that, in positions of the network between them.

    >>> followed({"conv": [0, 2, 5]}, {"conv": [1, 2], "fc": [3]})
    {'conv': [2, 5], 'fc': [3]}
    """
    twice = {n: [before[n][place] for place in left] for n, left in after.items() if n in before}
    return {**before, **after, **twice}


@cache
def _network() -> nn.Module:
    return load_network()


@cache
def _calibration() -> PreparedBatches:
    return image_batches("train", CALIBRATION_IMAGES)


@cache
def _tests() -> Images:
    return list(image_batches("test", TEST_IMAGES))


@cache
def _unpruned() -> float:
    return accuracy(quick(_network()), _tests())


@cache
def _cuts(method: str) -> _Cuts:
    return _Cuts(method)
