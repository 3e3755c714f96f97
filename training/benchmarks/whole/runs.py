"""Whole prunings of third-party networks by selectors that know nothing of their family.

Every finished run is a line of a file, and is not run again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from selector.errors import SelectorError
from selector.planning.expectation import classes_said
from selector.planning.limits import Widths
from selector.planning.method import AllocationName
from selector.planning.target import Target
from selector.pruning.procedure import default_rounds
from selector.pruning.prune import prune
from training.benchmarks.networks.learnt import digest_of, learn_without_family, opened
from training.benchmarks.repair.cases import (
    FEW_TEST_IMAGES,
    Case,
    Role,
    calibration_of,
    every_case,
    network_of,
    test_batches_of,
)
from training.benchmarks.whole.lamp import MOST, lamp_shares
from training.reporting.accuracy import accuracy, quick
from training.reporting.run_file import Key, RunFile
from training.zoo.shared_third_party import IMAGENET, third_party_info

FILE = "whole_runs.jsonl"
SELECTOR, WIDTHS, MEASURED, LAMP, EVEN = (
    "selector",
    "reconstruction, the selector's widths",
    "reconstruction, measured widths",
    "reconstruction, LAMP's widths",
    "reconstruction, even widths",
)
WAYS: Mapping[str, tuple[str, AllocationName | None]] = {
    SELECTOR: ("selector", "damage"),
    WIDTHS: ("reconstruction", "damage"),
    MEASURED: ("reconstruction", "measured"),
    LAMP: ("reconstruction", None),
    EVEN: ("reconstruction", "even"),
}
"""Name -> criterion and allocation, None for widths that are given; all repaired."""
UNLEARNT = (MEASURED, LAMP, EVEN)
"""The ways that no selector has a say in."""
KEPT = {SELECTOR: (0.9, 0.7, 0.5, 0.3), **dict.fromkeys((WIDTHS, *UNLEARNT), (0.7, 0.5, 0.3))}
"""Shares of the MACs that stay; so little as a tenth is cut for the forecast alone."""
KEPT_ON_IMAGENET = 0.8
"""Of networks for ImageNet, by which widths alone are compared."""
ROLES: tuple[Role, ...] = ("learn", "test")
"""Of third-party networks: no selector and no factor is ever learnt from the second."""
FACTORS: tuple[float, ...] = tuple(np.geomspace(1 / 64, 64, 49).tolist())
"""Of the predicted sum, at which the accuracy is kept that such a loss would leave."""


@dataclass(frozen=True)
class WholeRun:
    """One network pruned in one way, as the file holds it."""

    network: str
    family: str
    way: str
    keep_macs: float
    selector: str
    """What tells the selector from others: it was learnt without the family. Empty without one."""
    unpruned: float
    """Share of the test images that the unpruned network has right."""
    left: float
    """And the pruned and repaired one."""
    macs_kept: float
    seconds: float
    predicted: float | None = None
    """Sum of the predicted loss changes, before the first cut; None without a forecast."""
    kept_at: tuple[float, ...] = ()
    """Share of the accuracy that is left, by the forecast, if `FACTORS` times the sum is lost."""
    role: Role = "learn"
    """Of the network."""

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.network, self.way, self.keep_macs, self.selector

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "WholeRun":
        """Read a line of the file."""
        return cls(**{**fields, "kept_at": tuple(fields["kept_at"])})

    @property
    def factor(self) -> float:
        """Of the predicted sum: what loss explains the accuracy that was left."""
        share = self.left / self.unpruned
        falling = np.minimum.accumulate(np.array(self.kept_at))
        # Ascending, for interpolation; equal shares: the smallest factor.
        return float(np.exp(np.interp(-share, -falling, np.log(FACTORS), left=np.log(FACTORS[0]))))


def cases(names: Sequence[str] | None = None) -> list[Case]:
    """Third-party networks, first those that may be learnt from; those for ImageNet last.

    Args:
        names: Networks, in any order; None for all.

    Raises:
        SelectorError: An unknown name.
    """
    every = every_case(FEW_TEST_IMAGES).values()
    known = {
        case.name: case
        for large in (False, True)
        for role in ROLES
        for case in every
        if case.role == role and (case.dataset == IMAGENET) == large
    }
    for name in names or ():
        if name not in known:
            raise SelectorError(f"unknown network {name!r}; known: {', '.join(known)}")
    return [case for name, case in known.items() if names is None or name in names]


def kept_by(case: Case) -> Mapping[str, tuple[float, ...]]:
    """Way -> shares of the MACs that a network is pruned to."""
    if case.dataset != IMAGENET:
        return KEPT
    return {way: (KEPT_ON_IMAGENET,) for way in KEPT if way != SELECTOR}


Calls = Mapping[Key, Callable[[], WholeRun]]
"""Key -> the run that has it."""


def calls_of(wanted: Sequence[Case], data: Path, learnt: Path) -> Calls:
    """All runs of some networks.

    Args:
        wanted: The networks.
        data: Records.
        learnt: Folder of selectors that were learnt without a family; missing ones are learnt.
    """
    calls: dict[Key, Callable[[], WholeRun]] = {}
    for case in wanted:
        family = third_party_info(case.name).family
        folder = learn_without_family(family, data, learnt)
        for way, shares in kept_by(case).items():
            asked = None if way in UNLEARNT else folder
            for keep in shares:
                run = partial(run_one, case, family, way, keep, asked)
                calls[case.name, way, keep, _digest(asked)] = run
    return calls


def _digest(folder: Path | None) -> str:
    return "" if folder is None else digest_of(folder)


def run_missing(calls: Calls, file: Path, jobs: int, minutes: float | None) -> None:
    """Make the runs that are not in the file yet.

    Args:
        calls: Some of `calls_of`.
        file: Of the runs.
        jobs: Processes.
        minutes: No run is begun later than this.
    """
    RunFile(file, WholeRun.of).complete(calls, jobs=jobs, minutes=minutes)


def finished(calls: Calls, file: Path) -> list[WholeRun]:
    """The runs of these keys that are in the file."""
    found = RunFile(file, WholeRun.of).read()
    return [found[key] for key in calls if key in found]


def run_one(case: Case, family: str, way: str, keep_macs: float, folder: Path | None) -> WholeRun:
    """Prune and repair once."""
    model, images, tests = network_of(case), calibration_of(case), test_batches_of(case)
    criterion, allocation = WAYS[way]
    began = time.process_time()
    if allocation is None:
        rounds = default_rounds(Target("macs", keep_macs), Widths({}, MOST, 1))
        shares = lamp_shares(model, images, keep_macs)
        result = prune(model, images, criterion=criterion, ratios=shares, rounds=rounds)
    else:
        result = prune(
            model,
            images,
            criterion=criterion,
            allocation=allocation,
            selector=None if folder is None else opened(folder),
            keep_macs=keep_macs,
        )
    seconds = round(time.process_time() - began, 2)
    report = result.report
    predicted: float | None = None
    kept_at: tuple[float, ...] = ()
    if report.expected is not None:
        predicted = report.expected.loss_change_nats
        said = classes_said(model, images)
        assert said is not None, "these networks say classes"
        after: Sequence[float] = said.after([predicted * factor for factor in FACTORS])
        kept_at = tuple(round(share / said.accuracy, 5) for share in after)
    return WholeRun(
        case.name,
        family,
        way,
        keep_macs,
        _digest(folder),
        accuracy(quick(model), tests),
        accuracy(quick(result.model), tests),
        round(report.macs[1] / report.macs[0], 4),
        seconds,
        predicted,
        kept_at,
        case.role,
    )
