"""Rounds of plan, cut, recalibrate: how far each one goes, and what is taken back."""

import copy
import logging
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from torch import nn
from tqdm import tqdm

from selector.data.batches import Batches
from selector.data.forward import probe_inputs
from selector.data.loss import Loss, evaluate
from selector.errors import SelectorError
from selector.network.batchnorm import recalibrate_batchnorm
from selector.network.latency import REPEATS, Timed
from selector.network.tracing import retrace_groups
from selector.planning.candidates import Survey, survey_network
from selector.planning.choose import goal_of, plan_stage, plan_surveyed
from selector.planning.expectation import Expected
from selector.planning.forecast import foresee, highest_foreseen
from selector.planning.limits import Widths
from selector.planning.method import Method
from selector.planning.plan import Goal, Outcome, Plan
from selector.planning.stage import Stage
from selector.planning.target import Target
from selector.pruning.apply import FineTune, cut_as_promised, fine_tune

LOG = logging.getLogger("selector")

STEP = 0.1
"""By default a round takes this share of what the one before it left."""

EXTRA_ROUNDS = 3
NEAR_ENOUGH = 0.02
"""Rounds that are added while the latency measured is further above its target than this."""
FEW_REPEATS = 5
"""Pairs of timings between two rounds."""

HALVINGS = 2
"""A round's step is halved so many times at most."""

Came = Literal["done", "too much", "worse than foreseen"]
"""What came of a cut; all but the first were taken back."""


def default_rounds(target: Target, widths: Widths) -> int:
    """So many rounds that each takes about a tenth of what the one before it left.

    Every round costs a forward and backward pass over the scoring images, and a forward pass each
    for recalibration, for the means that compensate, and for the loss of what is left.

    >>> default_rounds(Target("macs", 0.5), Widths({}, 0.9, 1))
    7
    """
    shares = [target.keep, *(1 - ratio for ratio in widths.ratios.values())]
    return max(1, math.ceil(math.log(min(shares)) / math.log(1 - STEP) - 1e-9))


@dataclass(frozen=True, eq=False)
class Procedure:
    """What is done in every round, and when to stop."""

    method: Method
    first: Stage
    """The unpruned network, with all of the way ahead."""
    batches: Batches
    recalibrate: bool
    finetune: FineTune | None
    loss: Loss | None
    max_loss_change: float | None
    base_loss: float | None
    """Loss of the unpruned network on the batches; None where they have no targets."""
    progress: bool


class Walk:
    """A network on its way to the target; what it was before a round comes back if that fails."""

    def __init__(self, model: nn.Module, procedure: Procedure, rounds: int) -> None:
        self.model, self.groups = model, procedure.first.groups
        self.plans: list[Plan] = []
        self.stopped: str | None = None
        """Why the target was not met."""
        self.expected: Expected | None = None
        """What was expected before the first cut; None where a metric was named by hand."""
        self.cut = False
        """Whether a cut has been begun."""
        self.timed: Timed | None = None
        """Latency of the unpruned network and of this one, where it is the target."""
        self.start, self.criterion = procedure.first.groups, str(procedure.method)
        self._do, self._clock = procedure, procedure.first.clock
        self._probe = probe_inputs(model, procedure.batches)
        self._done, self._step = Fraction(0), Fraction(1, rounds)
        self._smallest = self._step / 2**HALVINGS

    @property
    def goal(self) -> Goal:
        """What was asked of the whole way, and what there is now."""
        goal = goal_of(self._stage(Fraction(1)), {})
        return goal if self.timed is None else replace(goal, got=self.timed.ratio)

    def finish(self) -> None:
        """Go on until the target is met, or `max_loss_change` forbids to.

        Raises:
            SelectorError: A round failed; the network is as it was before that round.
        """
        with tqdm(total=1.0, desc="pruning", disable=not self._do.progress, leave=False) as bar:
            while self._done < 1 and self.stopped is None:
                before = self._done
                self._round()
                bar.update(float(self._done - before))
            self._close_in()

    def _close_in(self) -> None:
        """Where whole passes take longer than was foretold, a few more rounds."""
        if self._clock is None or not self.plans:
            return
        enough = self._do.first.target.keep + NEAR_ENOUGH
        for number in range(EXTRA_ROUNDS + 1):
            self._time(REPEATS)
            late = self.timed is not None and self.timed.ratio > enough
            if not late or number == EXTRA_ROUNDS or self.stopped is not None:
                return
            self._round()

    def _time(self, repeats: int) -> None:
        """Time the network as it is, and correct by that what is foretold of the next round."""
        if self._clock is not None:
            lost = self._stage(Fraction(0)).lost({})
            self._clock, self.timed = self._clock.checked(self.model, lost, repeats)

    def _round(self) -> None:
        """One round; smaller steps are tried where what is measured is worse than it may be."""
        method, do = self._do.method, self._do
        survey = None
        if method.allocation != "myopic":
            stage = self._stage(self._step)
            survey = survey_network(self.model, do.batches, stage, method, loss=do.loss)
            if not self.plans and self.expected is None:
                self._announce(survey, stage)
        halved = images = 0
        while True:
            step = min(self._step / 2**halved, 1 - self._done)  # Of no length, when closing in.
            stage = self._stage(step)
            plan = self._planned(stage, survey)
            # What was measured for a step that was not taken has been paid for, too.
            images += plan.oracle_images
            plan = replace(plan, oracle_images=images)
            came = self._carried_out(plan, survey, stage.share, halved)
            if came == "worse than foreseen":
                halved += 1
                continue
            if came == "done":
                self._done += step
                if self._done < 1:
                    self._time(FEW_REPEATS)
                return
            # The limit of the loss is nearer than a step: from here on, steps are smaller.
            self._step = step / 2
            if self._step < self._smallest:
                self.stopped = (
                    f"the target was not met: another round would have raised the loss by more than"
                    f" max_loss_change={do.max_loss_change:.4g}"
                )
                return

    def _announce(self, survey: Survey, stage: Stage) -> None:
        """Say before the first cut what is to be expected of all of them."""
        rounds = round(1 / self._step)
        self.expected = foresee(
            self.model, survey, stage, self._do.method, rounds, loss=self._do.loss
        )
        if self.expected is not None:
            level = logging.WARNING if self.expected.alarming else logging.INFO
            LOG.log(level, "%s", self.expected)

    def _stage(self, step: Fraction) -> Stage:
        share = float(min(Fraction(1), self._done + step))
        return replace(self._do.first, groups=self.groups, share=share, clock=self._clock)

    def _planned(self, stage: Stage, survey: Survey | None) -> Plan:
        do = self._do
        if survey is None:
            return plan_stage(self.model, do.batches, stage, do.method, loss=do.loss)
        return plan_surveyed(
            self.model, survey, stage, do.method, loss=do.loss, progress=do.progress
        )

    def _carried_out(self, plan: Plan, survey: Survey | None, share: float, halved: int) -> Came:
        """Cut, recalibrate, fine-tune; all as before where the loss says that this was too much.

        Args:
            plan: What to cut.
            survey: Of the network as it is.
            share: The part of the way to the target that it reaches.
            halved: How often the step was halved; while it can be again, a loss above the plan's
                predicted interval is reason enough.

        Raises:
            SelectorError: A loss that is no number any more, a cut that does not do what masking
                promised, or a fine-tuning that changed shapes; all is as before.
        """
        do = self._do
        kept = copy.deepcopy(self.model), self.groups
        self.cut = True
        try:
            compensation = survey.compensation if survey is not None else None
            cut_as_promised(self.model, self.groups, plan, self._probe, compensation)
            if do.recalibrate:
                recalibrate_batchnorm(self.model, do.batches)
            highest = highest_foreseen(plan) if halved < HALVINGS else None
            loss = self._loss()
            rise = self._rise(loss)
            too_much = loss is not None and self._too_much(loss)
            if too_much or (rise is not None and highest is not None and rise > highest):
                self.model, self.groups = kept
                return "too much" if too_much else "worse than foreseen"
            if do.finetune is not None:
                fine_tune(self.model, do.finetune, len(self.plans) + 1)
                loss = self._loss()
            self.groups = retrace_groups(self.model, self._probe, self.groups)
        except SelectorError:
            self.model, self.groups = kept
            raise
        self.plans.append(replace(plan, outcome=Outcome(share, rise, halved, loss)))
        return "done"

    def _loss(self) -> float | None:
        """Loss on the calibration images; where they have no targets, outputs are looked at."""
        if self._do.base_loss is None:
            return None
        return evaluate(self.model, self._do.batches, self._do.loss).loss

    def _rise(self, loss: float | None) -> float | None:
        """By how much a loss is above what the round before has left."""
        last = self.plans[-1].outcome if self.plans else None
        before = self._do.base_loss if last is None else last.loss
        return None if loss is None or before is None else loss - before

    def _too_much(self, loss: float) -> bool:
        limit, base = self._do.max_loss_change, self._do.base_loss
        return limit is not None and base is not None and loss - base > limit
