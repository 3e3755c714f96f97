"""How strongly a refit is pulled towards the present weights: chosen on held-out images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from selector.repair.least_squares import WeightStep

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""In units of the mean diagonal of the inputs' (co)variance."""
FIRST = 2
"""The search starts at this one and goes on in the direction that helps."""
LEAST_GAIN = 1e-6
"""Share of the target's variance below which a difference between errors is rounding."""


class Solving(Protocol):
    """Equations made ready for several ridges."""

    def step(self, ridge: float) -> WeightStep | None:
        """The change for one ridge; None where all inputs are constant."""


class LayerEquations(Protocol):
    """A layer's equations: as sums (`least_squares.py`), or as they are (`few_equations.py`)."""

    @property
    def count(self) -> int:
        """Equations."""

    @property
    def residuals(self) -> Tensor:
        """Sum of the residuals, shape (groups, outputs)."""

    def __add__(self, other: Self) -> Self:
        """All equations of both."""

    def target_variance(self) -> float:
        """Sum of the targets' squared distances from their means."""

    def error(self, step: WeightStep) -> float:
        """Sum of the squares that are left after a step."""

    def judge(self) -> Callable[[WeightStep], float]:
        """`error` for several steps."""

    def solver(self, *, intercept: bool) -> Solving:
        """Made ready for several ridges."""


def unchanged(equations: LayerEquations) -> WeightStep:
    """The present weights and bias."""
    return WeightStep(None, torch.zeros_like(equations.residuals))


def shifted(equations: LayerEquations) -> WeightStep:
    """The present weights with the best bias."""
    return WeightStep(None, equations.residuals / max(1, equations.count))


@dataclass(frozen=True, eq=False)
class RidgeChoice:
    """The step taken, and what it explains of the held-out targets' variance."""

    step: WeightStep
    before: float
    """Share explained by the present weights; 1 is all, below 0 worse than the mean."""
    after: float
    """Share explained by the weights fitted without the held-out images."""


def choose_step(
    fitting: LayerEquations, held_out: LayerEquations, *, bias: bool, absorbed: bool
) -> RidgeChoice:
    """Choose the ridge, or the present weights, by the held-out images; then fit to all of them.

    Args:
        fitting: Equations of the images that are fitted to.
        held_out: Equations of the others.
        bias: Whether the layer has a bias that may change.
        absorbed: Whether a BatchNorm behind takes up whatever mean the outputs have.
    """
    intercept = bias or absorbed
    best = unchanged(fitting)
    if absorbed:
        # With or without a new bias: the BatchNorm's statistics make it the same.
        best = shifted(fitting)
    lowest = first = held_out.error(best)
    variance = held_out.target_variance()
    threshold = LEAST_GAIN * variance
    if first > threshold:
        if bias and (error := held_out.error(shifted(fitting))) < lowest - threshold:
            best, lowest = shifted(fitting), error
        step, error = _descend(fitting, held_out, intercept=intercept, rounding=threshold)
        if step is not None and error < lowest - threshold:
            best, lowest = step, error
    if best.ridge is not None:
        every = (fitting + held_out).solver(intercept=intercept)
        best = every.step(best.ridge) or best
    elif bool(best.shift.any()):
        best = shifted(fitting + held_out)
    share = 1 / variance if variance > 0 else 0.0
    return RidgeChoice(best, 1 - first * share, 1 - lowest * share)


def _descend(
    fitting: LayerEquations, held_out: LayerEquations, *, intercept: bool, rounding: float
) -> tuple[WeightStep | None, float]:
    """The ridge of least held-out error, found by walking along the ladder from its middle.

    Where the fit is all but exact, errors are rounding, and a weaker ridge leaves less of its own.
    """
    solver, error_of = fitting.solver(intercept=intercept), held_out.judge()

    def tried(place: int) -> tuple[WeightStep | None, float]:
        step = solver.step(RIDGES[place])
        return step, float("inf") if step is None else error_of(step)

    best, lowest = tried(FIRST)
    for places in (range(FIRST - 1, -1, -1), range(FIRST + 1, len(RIDGES))):
        start = best
        for place in places:
            exact = place < FIRST and lowest < 100 * rounding
            step, error = tried(place)
            if not error < lowest + (rounding if exact else -rounding):
                break
            best, lowest = step, min(error, lowest)
        if best is not start:
            break
    return best, lowest
