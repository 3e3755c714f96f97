"""A pruning's result and report: what was reached, compared with the unpruned network."""

import math
from dataclasses import dataclass, replace

from torch import nn

from selector.data.calibration import Calibration, evaluated
from selector.data.loss import Evaluation
from selector.data.quality import data_warnings
from selector.errors import SelectorError
from selector.pruning.before_after import compare_running, layer_rows
from selector.pruning.merge import combined
from selector.pruning.report import report_of
from selector.pruning.result import PruneResult, PruningError
from selector.pruning.rounds import PruningRun
from selector.pruning.run_info import Clocked, RunInfo

CALIBRATION_IMAGES, TEST_IMAGES = "calibration images", "test images"
"""Which images a report is about."""
UNLABELLED = "the images have no labels: no loss was measured, and no accuracy"


@dataclass(frozen=True, eq=False, kw_only=True)
class Reporter:
    """What the result is compared with, and on which images."""

    model: nn.Module
    calibration: Calibration
    test: Calibration | None
    before: Evaluation
    """Of the unpruned network, on the test images where there are any."""

    base: Evaluation | None
    """Of the unpruned network, on the calibration images; None where those have no loss."""

    clocked: Clocked | None = None
    """The call, for the report."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        calibration: Calibration,
        test: Calibration | None,
        *,
        needed: bool,
        clocked: Clocked | None = None,
    ) -> "Reporter":
        """Evaluate the unpruned network: one reading of the calibration and of the test images.

        Args:
            model: The unpruned network.
            calibration: Images to prune by.
            test: Images to judge by, where they are others.
            needed: Whether pruning needs a loss on the calibration images.
            clocked: The call that the report names.

        Raises:
            SelectorError: A loss is needed, and the calibration images have no labels.
        """
        before = evaluated(model, test or calibration)
        base: Evaluation | None = before
        if test is not None:
            try:
                base = evaluated(model, calibration)
            except SelectorError:
                # Metrics of weights alone need no targets; scoring will say what else is wrong.
                if needed:
                    raise
                base = None
        if base is not None and math.isnan(base.loss):
            if needed:
                raise SelectorError(
                    "max_loss_change compares losses, and the batches hold no labels; leave it out"
                )
            base = None
        return cls(
            model=model,
            calibration=calibration,
            test=test,
            before=before,
            base=base,
            clocked=clocked,
        )

    @property
    def judged_on(self) -> Calibration:
        """The images that the report is about."""
        return self.test or self.calibration

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is suspicious about the unpruned network on its data."""
        if self.base is None and math.isnan(self.before.loss):
            return (UNLABELLED,)
        on = TEST_IMAGES if self.base is None else CALIBRATION_IMAGES
        cross_entropy = self.calibration.loss is None
        return data_warnings(self.base or self.before, on, cross_entropy=cross_entropy)

    def result(self, run: PruningRun) -> PruneResult:
        """What has been reached, with its report."""
        info = self._info(run)
        found = self._reported(run, *self._after(run), info)
        if not run.state.plans:
            return found
        footprints, timed = compare_running(self.model, run.model, self.calibration, run.timed)
        report = replace(found.report, footprints=footprints, latency=timed)
        return replace(found, report=report)

    def stopped(self, run: PruningRun, error: BaseException) -> PruningError:
        """The error that keeps what was reached before the round that failed."""
        try:
            after, on = self._after(run)
        except Exception:  # What stopped the run may stop this, too.
            after, on = run.state.evaluation or self.before, CALIBRATION_IMAGES
        what = (
            str(error) if isinstance(error, SelectorError) else f"{type(error).__name__}: {error}"
        )
        step = (
            "what follows the last round" if run.finishing else f"round {len(run.state.plans) + 1}"
        )
        stopped = PruningError(
            f"{step} was undone: {what}; what had been reached before it is this error's result"
        )
        stopped.result = self._reported(run, after, on, self._info(run))
        return stopped

    def _info(self, run: PruningRun) -> RunInfo | None:
        images = None if self.base is None else self.base.images
        return None if self.clocked is None else self.clocked.info(self.model, run.probe, images)

    def _after(self, run: PruningRun) -> tuple[Evaluation, str]:
        """How the network does now, and on which images; the last round has looked already."""
        on = CALIBRATION_IMAGES if self.test is None else TEST_IMAGES
        if not run.state.plans:
            return self.before, on
        if self.test is not None:
            return evaluated(run.model, self.test), on
        if run.state.evaluation is not None:
            return run.state.evaluation, on
        return evaluated(run.model, self.calibration), on

    def _reported(
        self, run: PruningRun, after: Evaluation, on: str, info: RunInfo | None
    ) -> PruneResult:
        now = run.state
        whole = combined(now.plans, run.start, run.groups, criterion=str(run.method), goal=run.goal)
        warnings = (*self.warnings, *whole.warnings, *run.warnings)
        whole = replace(whole, expected=now.expected, warnings=warnings)
        report = report_of(now.plans, whole, self.before, after, on, run.timed)
        report = replace(
            report,
            repair=now.repaired,
            unrepaired=now.unrepaired,
            distillation=now.distilled,
            undistilled=now.undistilled,
            layers=layer_rows(run.start, run.groups),
            calibrated=(self.base, now.evaluation),
            run=info,
        )
        return PruneResult(run.model, whole, now.plans, report, self.model, whole.cuts)
