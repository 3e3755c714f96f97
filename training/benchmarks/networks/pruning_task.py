"""One network and one method, with all that their run depends on, and how it prunes."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from selector.data.batches import Batches
from selector.data.forward import probe_inputs
from selector.errors import SelectorError
from selector.network.tracing import find_groups
from selector.planning.plan import Plan
from selector.pruning.apply import FineTune
from selector.pruning.merge import combined
from selector.pruning.prune import prune
from selector.repair.correspondence import Kept, kept_after_cuts, kept_after_history
from training.benchmarks.common.curves import LOW
from training.benchmarks.common.subjects import (
    MAX_RATIO,
    Subject,
    SubjectBatches,
    calibration,
    find_subjects,
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
    def batches(self) -> SubjectBatches:
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
