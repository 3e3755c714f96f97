"""One network pruned by one tool, with all checks; run in a process of its own."""

import contextlib
import json
import logging
import resource
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from selector.data.forward import arguments
from selector.errors import SelectorError
from selector.network.checkpoint import load_pruned, save_pruned
from selector.network.tracing import Groups, find_groups
from selector.pruning.apply import apply_plan
from selector.pruning.prune import prune
from selector.pruning.result import PruneResult, PruningError
from training.benchmarks.coverage import rival
from training.benchmarks.coverage.catalogue import subject_named
from training.benchmarks.coverage.checks import (
    Exactness,
    exactness,
    file_fault,
    macs_of,
    training_fault,
)
from training.benchmarks.coverage.masking import statistics_places
from training.benchmarks.coverage.subject import Subject, objects_in
from training.benchmarks.coverage.trained_like import trained_like

Tool = Literal["selector", "torch-pruning"]
Outcome = Literal["pruned", "partly", "refused", "crash", "timeout"]
KEEP = 0.5
ROUNDS = {"written": 2}
"""By source; one elsewhere, for time."""
LATER_RATIO = 0.5
"""Share of every group that goes where the MACs within reach do not allow `KEEP`."""
OVERSHOOT = 1.02
"""The independent count may be above the share that is asked by this factor: small groups."""
OUTPUTS = ("no layer reads it", "would change its shape", "a single channel")
"""Reasons that are no lack: the network's outputs, and what cannot get smaller."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is known of a trial; a process that is stopped leaves what it had found.

    Attributes:
        outcome: `pruned`: half of the MACs are gone and every check holds. `partly`: less is within
            reach, and what is was pruned. `refused`: one line said why. `crash`: anything else, or
            a check that does not hold. `timeout`: no end within the limit.
        reason: Of an outcome that is not `pruned`.
        stage: What was begun last.
        groups: Prunable ones.
        refusals: Reasons for groups that are left alone, without the outputs, with their counts.
        reach: Share of the MACs in layers that lose channels on one side or both.
        seconds: CPU time of tracing and law, and of pruning.
        macs: Of one image by the independent counter, before and after.
        reported: Share of the MACs that is left by the product's own count.
        gap: Of masked and cut, relative.
        changed: By the removal, likewise.
        faults: Checks that do not hold.
    """

    outcome: Outcome = "timeout"
    reason: str = ""
    stage: str = "build"
    groups: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    reach: float | None = None
    trace_seconds: float | None = None
    prune_seconds: float | None = None
    macs: tuple[float, float] | None = None
    reported: float | None = None
    gap: float | None = None
    changed: float | None = None
    precision: str = ""
    faults: tuple[str, ...] = ()
    silent_wrong: bool = False


class Trial:
    """A trial on its way; everything found is written to a file at once."""

    def __init__(self, subject: Subject, path: Path) -> None:
        self.subject, self._path = subject, path
        self.found = Finding()

    def note(self, **changes: Any) -> None:
        """Keep what was found."""
        self.found = replace(self.found, **changes)
        self._path.write_text(json.dumps(asdict(self.found)))

    def go(self, tool: Tool) -> None:
        """Prune and check; every exception becomes an outcome."""
        self.note(stage="build")
        model = trained_like(self.subject)
        try:
            (self._by_selector if tool == "selector" else self._by_rival)(model)
        except SelectorError as error:
            self._refused(error)
        except Exception as error:
            kind = "crash" if tool == "selector" else "refused"
            self.note(outcome=kind, reason=f"{self.found.stage}: {_place_of(error)}")

    def _refused(self, error: SelectorError) -> None:
        """A refusal in the product's own words; behind a failed round may be a crash."""
        cause = error.__cause__ if isinstance(error, PruningError) else None
        crashed = cause is not None and not isinstance(cause, SelectorError)
        reason = f"{_place_of(cause)} in a round" if crashed and cause else _one_line(str(error))
        self.note(outcome="crash" if crashed else "refused", reason=f"{self.found.stage}: {reason}")

    def _by_selector(self, model: nn.Module) -> None:
        subject = self.subject
        before = macs_of(model, subject)
        self.note(stage="find_groups")
        groups = self._traced(model)
        self.note(stage="prune")
        batches = subject.batches(model)
        began = time.process_time()
        options: dict[str, Any] = {
            "rounds": ROUNDS.get(subject.source, 1),
            "loss": subject.loss,
            "forward": subject.forward,
        }
        partly = ""
        try:
            result = prune(model, batches, keep_macs=KEEP, **options)
        except SelectorError as error:
            if "cannot be met" not in str(error) or not groups.prunable:
                raise
            partly = _one_line(str(error))
            result = prune(model, batches, ratio=LATER_RATIO, **options)
        self.note(prune_seconds=round(time.process_time() - began, 2), stage="checks")
        self._check_result(model, result, groups)
        after = macs_of(result.model, subject)
        kept = result.report.macs[1] / result.report.macs[0]
        self.note(macs=(before, after), reported=round(kept, 4))
        share = after / before
        if not partly and share > KEEP * OVERSHOOT:
            partly = f"{share:.1%} of the MACs are left by the independent count"
        self._conclude(partly)

    def _traced(self, model: nn.Module) -> Groups:
        inputs, forward = self.subject.inputs(4, 0), self.subject.forward
        probe = arguments(model, inputs) if forward is None else (inputs, objects_in(inputs))
        began = time.process_time()
        groups = find_groups(model, probe, forward=forward)
        refusals: dict[str, int] = {}
        for why in groups.refused.values():
            if not any(known in why for known in OUTPUTS):
                refusals[_kind_of(why)] = refusals.get(_kind_of(why), 0) + 1
        self.note(
            trace_seconds=round(time.process_time() - began, 2),
            groups=len(groups.prunable),
            refusals=refusals,
            reach=round(reach_of(groups), 4),
        )
        return groups

    def _check_result(self, model: nn.Module, result: PruneResult, groups: Groups) -> None:
        places = statistics_places(groups.prunable, result.plan.removals)
        bare = apply_plan(model, result.plan)
        self._check(exactness(model, bare, result.cuts, self.subject, places))
        self._check_use(result.model, save_pruned, load_pruned)

    def _by_rival(self, model: nn.Module) -> None:
        before = macs_of(model, self.subject)
        self.note(stage="prune")
        began = time.process_time()
        cut = rival.pruned_by_torch_pruning(model, self.subject, KEEP)
        self.note(
            prune_seconds=round(time.process_time() - began, 2),
            macs=(before, cut.kept * before),
            stage="checks",
        )
        self._check(exactness(model, cut.model, cut.cuts, self.subject))
        self._check_use(cut.model, rival.save, rival.load)
        self._conclude("")

    def _check(self, exact: Exactness) -> None:
        """Whether masked is cut."""
        self.note(
            gap=exact.gap,
            changed=exact.changed,
            precision=exact.precision,
            silent_wrong=not exact.exact,
        )
        if not exact.exact:
            self._fault(f"masked is not cut: outputs differ by {exact.gap:.2g} of the largest")

    def _check_use(
        self, model: nn.Module, save: Callable[..., Any], load: Callable[..., Any]
    ) -> None:
        """A training step and a file of the final network."""
        for fault in (
            training_fault(model, self.subject),
            file_fault(model, self.subject, save, load),
        ):
            if fault is not None:
                self._fault(fault)

    def _fault(self, text: str) -> None:
        self.note(faults=(*self.found.faults, _one_line(text)))

    def _conclude(self, partly: str) -> None:
        if self.found.faults:
            self.note(outcome="crash", reason=f"checks: {self.found.faults[0]}")
        else:
            self.note(outcome="partly" if partly else "pruned", reason=partly)
        self.note(stage="end")


def reach_of(groups: Groups) -> float:
    """Share of the MACs in layers that lose channels on one side or both."""
    touched = {part.layer for group in groups.prunable.values() for part in group.slices}
    within = sum(
        cost.macs + cost.products for name, cost in groups.costs.layers.items() if name in touched
    )
    return within / max(groups.costs.total("macs"), 1.0)


def in_process(name: str, tool: Tool, path: Path, seconds: int) -> None:
    """Run one trial; the process is killed when it has used so many seconds of CPU."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 60))
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.suppress(KeyboardInterrupt):
        warnings.simplefilter("ignore")
        Trial(subject_named(name), path).go(tool)


def _place_of(error: BaseException) -> str:
    """The error on one line, with the innermost functions."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " > ".join(f"{Path(f.filename).stem}.{f.name}" for f in frames)
    return _one_line(f"{type(error).__name__}: {error} ({where})")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _kind_of(reason: str) -> str:
    """A reason without the names and numbers of its group, so that equal ones can be counted."""
    words = [
        "#" if any(c.isdigit() for c in w) or "'" in w or "." in w[:-1] else w
        for w in reason.split()
    ]
    return " ".join(words)[:160]
