"""How accurate is a pruned network, then repaired, then distilled, and what does each cost?

A network is pruned once without repair; the very same network is then repaired by `reconstruct`,
and the repaired one is distilled for a fixed number of passes over the same images. Labels serve
the selector's scores and the accuracies alone. Every finished run is a line of a file, and is not
run again.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from torch.nn import functional

from selector.errors import SelectorError
from selector.learning.artefact import shipped_file
from selector.network.copying import copy_of
from selector.pruning.prune import prune
from selector.repair.distillation.distil import distil
from selector.repair.reconstruction import reconstruct
from training.benchmarks.networks.learnt import digest_of
from training.benchmarks.repair.cases import (
    MIRRORED,
    Case,
    calibration_of,
    network_of,
    passes_for,
    test_batches_of,
    weights_of,
    work_of,
)
from training.reporting.accuracy import Images, accuracy, quick
from training.reporting.run_file import Key, RunFile

FILE = "repair_runs.jsonl"
VERSION = 1
"""Changes when pruning, repair or distillation does, so that earlier runs are not taken for new."""

T = TypeVar("T")


@dataclass(frozen=True)
class Accuracies:
    """Share of the test images that are classified right, 0 to 1; None where not measured."""

    unpruned: float | None = None
    pruned: float | None = None
    repaired: float | None = None
    distilled: float | None = None


@dataclass(frozen=True)
class Seconds:
    """CPU time of one thread; other work on the machine does not count."""

    scoring: float = 0.0
    """One forward and backward pass of the calibration images."""
    prune: float = 0.0
    repair: float = 0.0
    distil: float = 0.0


@dataclass(frozen=True)
class RepairRun:
    """One finished run, as the file holds it."""

    network: str
    dataset: str
    role: str
    settings: str
    """Changes with whatever the run depends on."""
    macs: float
    """Of one image, unpruned."""
    images: int
    test_images: int
    keep_macs: float
    rounds: int
    passes: int
    """Of distillation; 0 where it takes too long."""
    accuracies: Accuracies
    seconds: Seconds
    repair: str = ""
    """What the repair says of itself."""
    distillation: str = ""
    """What the distillation says of itself."""
    failed: str | None = None
    """Why it did not reach the end."""

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.network, self.settings

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "RepairRun":
        """Read a line of the file."""
        accuracies, seconds = Accuracies(**fields["accuracies"]), Seconds(**fields["seconds"])
        return cls(**{**fields, "accuracies": accuracies, "seconds": seconds})


def settings_of(case: Case) -> str:
    """12 hexadecimal digits that change with whatever a run depends on."""
    selector = digest_of(shipped_file("selector"))
    parts = [asdict(case), passes_for(case), weights_of(case), selector, VERSION]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def run_missing(cases: Sequence[Case], file: Path, minutes: float | None) -> list[RepairRun]:
    """Run what is not in the file yet, in one process; return all runs of these cases in it."""
    calls: dict[Key, Callable[[], RepairRun]] = {
        (case.name, settings_of(case)): partial(run_one, case) for case in cases
    }
    return RunFile(file, RepairRun.of).complete(calls, jobs=1, minutes=minutes)


def finished(cases: Sequence[Case], file: Path) -> list[RepairRun]:
    """The runs of these cases that are in the file, as they would be made today."""
    found = RunFile(file, RepairRun.of).read()
    keys = [(case.name, settings_of(case)) for case in cases]
    return [found[key] for key in keys if key in found]


def run_one(case: Case) -> RepairRun:
    """Prune, repair and distil one network."""
    trial = _Trial(case)
    failed = None
    try:
        trial.go()
    except SelectorError as error:
        failed = str(error)
    return RepairRun(
        network=case.name,
        dataset=case.dataset,
        role=case.role,
        settings=settings_of(case),
        macs=work_of(case),
        images=case.images,
        test_images=trial.test_images,
        keep_macs=case.keep_macs,
        rounds=trial.rounds,
        passes=passes_for(case),
        accuracies=Accuracies(**trial.accuracies),
        seconds=Seconds(**{what: round(s, 3) for what, s in trial.seconds.items()}),
        repair=trial.said.get("repair", ""),
        distillation=trial.said.get("distil", ""),
        failed=failed,
    )


class _Trial:
    """What is known of a run while it goes on."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.accuracies: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.said: dict[str, str] = {}
        self.rounds = self.test_images = 0

    def go(self) -> None:
        """One step after the other; what was reached before an error stays."""
        case, model = self._case, network_of(self._case)
        images, self._test = calibration_of(case), test_batches_of(case)
        self.test_images = sum(len(labels) for _, labels in self._test)
        self._look("unpruned", model)
        self._timed("scoring", lambda: scoring_pass(copy_of(model), images))
        cut = self._timed(
            "prune",
            lambda: prune(
                model, images, keep_macs=case.keep_macs, rounds=case.rounds, repair=False
            ),
        )
        self.rounds = len(cut.rounds)
        self._look("pruned", cut.model)
        repaired = self._timed("repair", lambda: reconstruct(model, cut, images))
        self.said["repair"] = repaired.report.summary
        self._look("repaired", repaired.model)
        if passes := passes_for(case):
            mirror = case.dataset in MIRRORED
            taught = self._timed(
                "distil",
                lambda: distil(model, repaired.model, images, passes=passes, mirror=mirror),
            )
            self.said["distil"] = str(taught.report)
            self._look("distilled", taught.model)

    def _look(self, what: str, model: nn.Module) -> None:
        self.accuracies[what] = accuracy(quick(model), self._test)

    def _timed(self, what: str, work: Callable[[], T]) -> T:
        began = time.process_time()
        done = work()
        self.seconds[what] = time.process_time() - began
        return done


def scoring_pass(model: nn.Module, images: Images) -> None:
    """One forward and backward pass of labelled images, as first-order scores need it."""
    for inputs, labels in images:
        functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
