"""Rounds of plan, cut, recalibrate: how far each one goes, and what is undone."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

from torch import Tensor, nn

from selector.data.calibration import Calibration, evaluated
from selector.data.forward import probe_inputs
from selector.data.loss import Evaluation, evaluate
from selector.network.batchnorm import recalibrate_batchnorm
from selector.network.checkpoint import load_tensors
from selector.network.copying import copy_of, uncompiled
from selector.network.latency import REPEATS, Timed
from selector.network.surgery import apply_cuts
from selector.network.tracing import Groups, retrace_groups
from selector.planning.candidates import Survey, Trial
from selector.planning.choose import (
    UNLIKE,
    explained,
    goal_of,
    plan_stage,
    plan_surveyed,
    surveyed,
)
from selector.planning.forecast import foresee, highest_predicted
from selector.planning.method import Method
from selector.planning.plan import Goal, Plan, RoundOutcome
from selector.planning.stage import Stage
from selector.pruning.apply import cut_as_promised, fine_tune
from selector.pruning.callbacks import RoundEnd
from selector.pruning.merge import combined
from selector.pruning.procedure import Procedure
from selector.pruning.progress import RoundProgress, say_above
from selector.pruning.repairing import Repairer, repair_warnings
from selector.pruning.resume import PruningState
from selector.repair.distillation.distil import distil

LOG = logging.getLogger("selector")

EXTRA_ROUNDS = 3
NEAR_ENOUGH = 0.02
"""Rounds that are added while the latency measured is further above its target than this."""
FEW_REPEATS = 5
"""Pairs of timings between two rounds."""

HALVINGS = 2
"""How often a round's step is halved at most."""

CutResult = Literal["kept", "above the limit", "above the prediction"]
"""Whether a cut was kept, or why it was undone."""


class PruningRun:
    """A network on its way to the target; a round that fails leaves it as it was before.

    A round reads the calibration images once to score (not at all for metrics of weights alone),
    once to recalibrate or a few times to repair, once for the loss of what is left, and once for
    the means that compensate, where that is asked for; once or twice more where widths are
    measured. Before the first cut one more reading gives the present accuracy for the forecast.

    Args:
        original: The unpruned network, which repairs imitate.
        calibration: The user's data.
        first: The unpruned network, with all of the way ahead.
        procedure: What is done in every round.
    """

    def __init__(
        self, original: nn.Module, calibration: Calibration, first: Stage, procedure: Procedure
    ) -> None:
        self.model, self.groups = copy_of(original), first.groups
        self.state = PruningState(step=Fraction(1, procedure.rounds))
        self.begun = self.cut = False
        """Whether a round, and a cut, has been begun."""
        self.timed: Timed | None = None
        """Latency of the unpruned network and of this one, where it is the target."""
        self.finishing = False
        """Whether the last round is done, and what comes after it has been begun."""
        self._calibration, self._first, self._do = calibration, first, procedure
        self._bar = RoundProgress(procedure.rounds, shown=procedure.progress)
        self._clock = first.clock
        self._probe = probe_inputs(self.model, calibration)
        self._repairer = Repairer(
            uncompiled(original), first.groups, required=procedure.repair_required
        )
        self._original = original
        self._smallest = self.state.step / 2**HALVINGS
        if procedure.store is not None and (found := procedure.store.load()) is not None:
            self._resume(*found)

    @property
    def start(self) -> Groups:
        """The groups of the unpruned network."""
        return self._first.groups

    @property
    def probe(self) -> object:
        """A few images, as the network is called with."""
        return self._probe

    @property
    def method(self) -> Method:
        """How channels are chosen."""
        return self._do.method

    @property
    def goal(self) -> Goal:
        """What was asked of the whole way, and what there is now."""
        goal = goal_of(self._stage(Fraction(1)), {})
        return goal if self.timed is None else replace(goal, got=self.timed.ratio)

    def finish(self) -> None:
        """Go on until the target is met, or `max_loss_change` forbids to.

        Raises:
            Exception: A round failed; the network is as it was before that round.
        """
        with self._bar:
            self._bar.advance(float(self.state.done))
            while self.state.done < 1 and self.state.stopped is None:
                before = self.state.done
                self._round()
                self._bar.advance(float(self.state.done - before))
            self._close_in()
            if self.state.plans and not self.state.finished:
                self._finish_network()

    def _note(self, **changes: Any) -> None:
        """Change what is known of the network."""
        self.state = replace(self.state, **changes)

    def _finish_network(self) -> None:
        """Repair and distil after the last round; what was there before comes back on failure."""
        put_back = self._restorer()
        self.finishing = True
        try:
            self._bar.step("repairing what is left")
            if self._do.repair == "end" and self._repair(self.state.plans, self._reported()):
                self._note(evaluation=self._evaluated())
            if self._do.distil is not None:
                self._bar.step("distilling")
                before = self._reported()
                self.model, found = distil(
                    self._original, self.model, self._calibration, minutes=self._do.distil
                )
                self._note(distilled=found, undistilled=before, evaluation=self._evaluated())
        except BaseException:
            put_back()
            raise
        self._note(finished=True)
        self._keep_state()

    def _repair(self, plans: Sequence[Plan], unrepaired: Evaluation | None) -> bool:
        """Repair what is left after these rounds; whether that was possible.

        Args:
            plans: Of the rounds.
            unrepaired: How the network does as it is, on the images of the report.
        """
        self.model, report, failed = self._repairer.repair(self.model, plans, self._calibration)
        unrepaired = None if report is None else unrepaired
        self._note(repaired=report, unrepaired=unrepaired, not_repaired=failed)
        return report is not None

    def _restorer(self) -> Callable[[], None]:
        """What puts the network, and all that is reported of it, back as they are now."""
        model, groups, state = copy_of(self.model), self.groups, self.state

        def put_back() -> None:
            self.model, self.groups, self.state = model, groups, state

        return put_back

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the report warns of: a repair that did nothing, a target that was not met."""
        stopped = () if self.state.stopped is None else (self.state.stopped,)
        return (*repair_warnings(self.state.repaired, self.state.not_repaired), *stopped)

    def _resume(self, found: PruningState, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a state that was written after a round."""
        self.state = found
        apply_cuts(self.model, combined(found.plans, self.start, self.start).cuts)
        load_tensors(self.model, tensors, "the checkpoint")
        self.groups = retrace_groups(self.model, self._probe, self.start)
        if self._do.finetune is not None:
            self._repairer.imitate(self.model, self.groups, len(found.plans))
        if found.done < 1:
            self._time(FEW_REPEATS)
        LOG.info("resumed after round %d", len(found.plans))

    def _keep_state(self) -> None:
        """Write the state down, for a call that resumes."""
        if self._do.store is not None:
            self._do.store.save(self.state, self.model)

    def _close_in(self) -> None:
        """Where whole passes take longer than predicted, a few more rounds."""
        if self._clock is None or not self.state.plans:
            return
        enough = self._first.target.keep + NEAR_ENOUGH
        for number in range(EXTRA_ROUNDS + 1):
            self._time(REPEATS)
            late = self.timed is not None and self.timed.ratio > enough
            if not late or number == EXTRA_ROUNDS or self.state.stopped is not None:
                return
            self._round()

    def _time(self, repeats: int) -> None:
        """Time the network as it is, and correct by that what is predicted of the next round."""
        if self._clock is not None:
            lost = self._stage(Fraction(0)).lost({})
            self._clock, self.timed = self._clock.checked(self.model, lost, repeats)

    def _round(self) -> None:
        """One round; smaller steps are tried where the measured loss is above what is allowed."""
        self.begun = True
        self._bar.begin(len(self.state.plans) + 1)
        method, survey = self._do.method, None
        halved = images = 0
        if method.myopic is None:
            stage = self._stage(self.state.step)
            unlike = self.state.unlike
            survey = surveyed(self.model, self._calibration, stage, method, unlike)
            self._note(unlike=survey.unlike)
        while True:
            # Of no length, when closing in.
            step = min(self.state.step / 2**halved, 1 - self.state.done)
            stage = self._stage(step)
            self._bar.step("choosing")
            plan = self._planned(stage, survey)
            if survey is not None and not self.state.plans and self.state.expected is None:
                self._announce(survey, stage)
            # What was measured for a step that was not taken has been paid for, too.
            images += plan.oracle_images
            plan = replace(plan, oracle_images=images)
            result = self._carried_out(plan, survey, stage.share, halved)
            if result == "above the prediction":
                halved += 1
                continue
            if result == "kept":
                self._note(done=self.state.done + step)
                self._keep_state()
                self._call_back()
                if self.state.done < 1:
                    self._time(FEW_REPEATS)
                return
            # The limit of the loss is nearer than a step: from here on, steps are smaller.
            self._note(step=step / 2)
            if self.state.step < self._smallest:
                self._note(
                    stopped=f"the target was not met: another round would have raised the loss by "
                    f"more than max_loss_change={self._do.max_loss_change:.4g}"
                )
                self._keep_state()
                return

    def _call_back(self) -> None:
        """Tell whoever wants to know that a round is kept."""
        start, now = self.start.costs, self.groups.costs
        for callback in self._do.callbacks:
            callback.on_round_end(
                RoundEnd(
                    number=len(self.state.plans),
                    plan=self.state.plans[-1],
                    model=self.model,
                    macs_kept=now.total("macs") / start.total("macs"),
                    parameters_kept=now.total("parameters") / start.total("parameters"),
                    evaluation=self.state.evaluation,
                )
            )

    def _announce(self, survey: Survey, stage: Stage) -> None:
        """Log before the first cut what is expected of all of them."""
        if survey.unlike:
            LOG.info(UNLIKE)
        rounds = round(1 / self.state.step)
        expected = foresee(self.model, survey, stage, self._do.method, rounds)
        self._note(expected=expected)
        if expected is not None:
            level = logging.WARNING if expected.alarming else logging.INFO
            LOG.log(level, "%s", expected)
            if self._do.progress and not LOG.isEnabledFor(level):
                say_above(str(expected))  # Whoever watches is told in any case.

    def _stage(self, step: Fraction) -> Stage:
        share = float(min(Fraction(1), self.state.done + step))
        return replace(self._first, groups=self.groups, share=share, clock=self._clock)

    def _planned(self, stage: Stage, survey: Survey | None) -> Plan:
        method = self._do.method
        if survey is None:
            return plan_stage(self.model, self._calibration, stage, method)
        trial = Trial(
            model=self.model,
            survey=survey,
            recalibrate=method.recalibrate,
            progress=self._do.progress,
        )
        return plan_surveyed(trial, stage, method)

    def _carried_out(
        self, plan: Plan, survey: Survey | None, share: float, halved: int
    ) -> CutResult:
        """Cut, recalibrate, fine-tune; all is undone where the loss is above what is allowed.

        Args:
            plan: What to cut.
            survey: Of the network as it is.
            share: The part of the way to the target that it reaches.
            halved: How often the step was halved; while it can be again, a loss above the plan's
                predicted interval undoes the cut.

        Raises:
            Exception: Anything that failed; all is as before.
        """
        put_back, number = self._restorer(), len(self.state.plans) + 1
        self.cut = True
        try:
            result, rise = self._cut(plan, survey, share, halved)
            if result == "kept":
                if self._do.finetune is not None:
                    self._bar.step("fine-tuning")
                    fine_tune(self.model, self._do.finetune, number)
                    self._note(evaluation=self._evaluated())
                self.groups = retrace_groups(self.model, self._probe, self.groups)
                if self._do.finetune is not None:
                    self._repairer.imitate(self.model, self.groups, number)
        except BaseException:
            put_back()
            raise
        if result != "kept":
            put_back()
            return result
        now = self.state.evaluation
        loss, accuracy = (None, None) if now is None else (now.loss, now.accuracy)
        if survey is not None:
            plan = explained(plan, survey, self._do.method.selector)
        outcome = RoundOutcome(share, rise, halved, loss, accuracy)
        self._note(plans=(*self.state.plans, replace(plan, outcome=outcome)))
        return result

    def _cut(
        self, plan: Plan, survey: Survey | None, share: float, halved: int
    ) -> tuple[CutResult, float | None]:
        """Cut and recalibrate, and judge by the loss; with its rise, where there is one."""
        self._bar.step("cutting and repairing")
        compensation = survey.compensation if survey is not None else None
        cut_as_promised(self.model, self.groups, plan, self._probe, compensation)
        repaired = False
        if self._do.repair == "rounds":
            unrepaired = self._measured() if self._reported_next(share) else None
            repaired = self._repair([*self.state.plans, plan], unrepaired)
        if not repaired and self._do.method.recalibrate:
            recalibrate_batchnorm(self.model, self._calibration)
        self._bar.step("measuring")
        highest = highest_predicted(plan) if halved < HALVINGS and self._foretold() else None
        before, now = self._loss_before(), self._evaluated()
        self._note(evaluation=now)
        if now is None:
            return "kept", None
        loss, limit = now.loss, self._do.max_loss_change
        rise = None if before is None else loss - before
        base = self._do.base_loss
        if limit is not None and base is not None and loss - base > limit:
            return "above the limit", rise
        if rise is not None and highest is not None and rise > highest:
            return "above the prediction", rise
        return "kept", rise

    def _reported_next(self, share: float) -> bool:
        """Whether this may be the last repair: at the end of the way, or at a limit of the loss."""
        return share >= 1 or self._do.max_loss_change is not None

    def _foretold(self) -> bool:
        """Whether what is predicted is the loss of the network as it is after this cut."""
        selector = self._do.method.selector
        return selector is None or not selector.predicts_repaired or self._do.repair == "rounds"

    def _evaluated(self) -> Evaluation | None:
        """How the network does on the calibration images; None where they have no targets."""
        if self._do.base_loss is None:
            return None
        return evaluate(self.model, self._calibration, self._calibration.loss)

    def _reported(self) -> Evaluation | None:
        """How the network does on the images of the report, the last evaluation where it holds."""
        if self._do.judged_on is self._calibration:
            return self.state.evaluation
        return self._measured()

    def _measured(self) -> Evaluation | None:
        """How the network does on the images of the report, read now."""
        images = self._do.judged_on
        if images is self._calibration:
            return self._evaluated()
        return None if images is None else evaluated(self.model, images)

    def _loss_before(self) -> float | None:
        """Loss that the round before has left."""
        plans = self.state.plans
        last = plans[-1].outcome if plans else None
        return self._do.base_loss if last is None else last.loss
