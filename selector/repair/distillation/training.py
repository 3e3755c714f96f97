"""The training itself: one-cycle Adam, looks at the held-out images, the best values kept."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import torch
from torch import nn

from selector.data.forward import evaluating
from selector.errors import SelectorError
from selector.network.copying import copy_of
from selector.network.layers import NORMALISATION
from selector.repair.distillation.state import DistillationState, State, put_values
from selector.repair.distillation.task import Task

BatchNormMode = Literal["frozen", "batch"]
RATE = 1e-3
LOOKS = 10
"""How often the held-out divergence is read in a run."""
_WARM_UP = 0.3
_FIRST, _LAST = 1 / 25, 1e-3
"""Rates at the start and at the end of a cycle, as shares of the peak."""
_BROKEN = 2.0
"""In the second half of a cycle, more than this times the pruned network's divergence, and near its
end, more than `_WORSE` times the best so far, is not waited for any longer."""
_WORSE = 1.1
_SLOWER = 1 / 3
_PROBE = 0.06
"""Share of the run that each recipe is tried for."""
_FEWEST_PROBE_STEPS = 8


@dataclass(frozen=True)
class TrainingRecipe:
    """What is chosen by the held-out divergence."""

    rate: float
    """Peak learning rate of Adam."""
    batchnorm: BatchNormMode
    """`frozen`: running statistics, as in use; `batch`: those of every batch."""


@dataclass(frozen=True)
class Budget:
    """How long a run may be: one of the two is given."""

    steps: int | None
    seconds: float | None
    """Of wall time, from the start of the call."""

    def phase(self, run: DistillationState) -> float:
        """Share of the cycle that is behind after the step just made.

        Of a budget in seconds, what is left of the cycle is spread over the steps that are still
        possible at the speed so far: so the cycle ends within the budget, however fast the machine
        is, and never in the middle.
        """
        if self.steps is not None:
            return min(1.0, (run.step - run.first_step) / max(1, self.steps - run.first_step))
        assert self.seconds is not None
        each = (run.seconds - run.first_second) / (run.step - run.first_step)
        steps_left = (self.seconds - run.seconds) / max(each, 1e-9)
        return 1.0 if steps_left < 1 else run.phase + (1 - run.phase) / (steps_left + 1)

    def part(self, share: float, run: DistillationState) -> "Budget":
        """A share of this budget, from where a run stands."""
        if self.steps is not None:
            return Budget(max(_FEWEST_PROBE_STEPS, round(share * self.steps)), None)
        assert self.seconds is not None
        return Budget(None, run.seconds + share * self.seconds)


Report = Callable[[State], None]
"""Called after every look, with the state as it is then."""


def fresh_state(student: nn.Module, recipe: TrainingRecipe, before: float, seconds: float) -> State:
    """A run at its beginning."""
    trained = [p for p in student.parameters() if p.requires_grad]
    progress = DistillationState(
        rate=recipe.rate,
        batchnorm=recipe.batchnorm,
        before=before,
        best=before,
        seconds=seconds,
        first_second=seconds,
    )
    state = State(student, torch.optim.Adam(trained, lr=recipe.rate), progress, {})
    state.keep_best()
    return state


def train(task: Task, state: State, budget: Budget, report: Report | None = None) -> None:
    """Train until the budget is spent or nothing is to be gained; the best values are put back.

    Without `report` it is a short trial: no looks in between, no second attempts.
    """
    run = state.progress
    started = perf_counter() - run.seconds
    with _training_mode(state.student, run.batchnorm):
        while run.phase < 1 and not run.stopped:
            _step(task, state)
            run.seconds = perf_counter() - started
            run.phase = budget.phase(run)
            if report and int(run.phase * LOOKS) > run.looks:
                _look(task, state)
                run.seconds = perf_counter() - started
                report(state)
    if report:
        put_values(state.student, state.best)


def chosen_recipe(
    task: Task,
    pruned: nn.Module,
    recipes: list[TrainingRecipe],
    budget: Budget,
    start: DistillationState,
) -> TrainingRecipe:
    """The recipe with the least held-out divergence after a short cycle of its own.

    Args:
        task: The networks and images.
        pruned: The network to train; a copy is tried with each recipe.
        recipes: What is tried, the default first.
        budget: That of the whole run; each recipe takes a small share of it.
        start: Where the call stands; its seconds go on.
    """
    if len(recipes) == 1:
        return recipes[0]
    readings = []
    for recipe in recipes:
        state = fresh_state(copy_of(pruned), recipe, start.before, start.seconds)
        train(task, state, budget.part(_PROBE, start))
        began = perf_counter()
        reading = task.reading(state.student)
        readings.append(reading if math.isfinite(reading) else math.inf)
        start.seconds = state.progress.seconds + perf_counter() - began
    return recipes[readings.index(min(readings))]


def cycle(phase: float) -> float:
    """Learning rate of a one-cycle schedule, as a share of its peak.

    Source:
        Smith and Topin, arXiv 1708.07120; the cosine form of `torch.optim.lr_scheduler.OneCycleLR`.
    """
    if phase < _WARM_UP:
        return _between(_FIRST, 1.0, phase / _WARM_UP)
    return _between(1.0, _LAST, (phase - _WARM_UP) / (1 - _WARM_UP))


def is_trained_normalisation(layer: nn.Module) -> bool:
    """Whether this is a BatchNorm layer with running statistics that the caller did not freeze."""
    if not isinstance(layer, NORMALISATION) or not layer.track_running_stats:
        return False
    return all(p.requires_grad for p in layer.parameters())


def _between(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def _step(task: Task, state: State) -> None:
    run = state.progress
    sample = task.sample(run.step)
    loss = task.loss(state.student, sample)
    if not loss.requires_grad:
        raise SelectorError(
            "the pruned network's outputs do not depend on any parameter that requires a gradient, "
            "so nothing can be trained; check requires_grad, and detach() or no_grad() in forward"
        )
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    for group in state.optimizer.param_groups:
        group["lr"] = run.rate * cycle(run.phase)
    state.optimizer.step()
    run.step += 1


def _look(task: Task, state: State) -> None:
    """Read the held-out divergence, keep the best values, and decide whether to go on."""
    run = state.progress
    run.looks = int(run.phase * LOOKS)
    reading = task.reading(state.student)
    run.readings.append(reading)
    if reading < run.best:
        run.best, run.best_step = reading, run.step
        state.keep_best()
    broken = run.phase >= 0.5 and reading > _BROKEN * run.before
    worse = run.phase >= 0.8 and reading > _WORSE * run.best
    if broken or worse or not math.isfinite(reading):
        _start_again(state)
    elif 0.6 <= run.phase < 1 and _rising(run.readings, run.best):
        run.stopped = True


def _rising(readings: list[float], best: float) -> bool:
    """Whether the divergence rose twice in a row while the rate was falling: it will not return."""
    *_, first, second, third = [math.inf, math.inf, *readings]
    return best < first < second < third


def _start_again(state: State) -> None:
    """Take the best values and a third of the rate, and use what is left of the budget."""
    run = state.progress
    put_values(state.student, state.best)
    state.optimizer.state.clear()
    if run.phase >= 1:
        return
    run.rate *= _SLOWER
    run.phase, run.looks = 0.0, 0
    run.first_step, run.first_second = run.step, run.seconds
    run.readings.clear()


@contextmanager
def _training_mode(student: nn.Module, batchnorm: str) -> Iterator[None]:
    """Evaluation mode, but for BatchNorm layers that are to use each batch's statistics."""
    with evaluating(student):
        for layer in student.modules():
            if batchnorm == "batch" and is_trained_normalisation(layer):
                layer.train()
        yield
