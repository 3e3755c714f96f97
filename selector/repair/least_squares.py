"""Ridge regression from sums: what a layer's weights should change by.

The regression is on *residuals*, what the present weights leave of the target, so its ridge pulls
towards the present weights, and a layer that fits already stays as it is to the last digits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

BLOCK = 128
"""Rows of the matrix of inputs times inputs that are summed at once, up to the diagonal."""


@dataclass
class NormalEquations:
    """Sums over equations: `residual = change @ inputs + shift`, for every output of every group.

    Shapes: G groups, D inputs and O outputs of each; all float64.
    """

    count: int
    inputs: Tensor
    """Sum of the inputs, (G, D)."""
    residuals: Tensor
    """Sum of the residuals, (G, O)."""
    targets: Tensor
    """Sum of the targets, (G, O)."""
    lower: Tensor
    """Sum of inputs times inputs, (G, D, D); above the diagonal it is not filled in."""
    cross: Tensor
    """Sum of inputs times residuals, (G, D, O)."""
    squares: Tensor
    """Sum of the residuals' squares, (G, O)."""
    target_squares: Tensor
    """Sum of the targets' squares, (G, O)."""

    @classmethod
    def empty(
        cls, groups: int, inputs: int, outputs: int, device: torch.device
    ) -> "NormalEquations":
        """No equations yet."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=device)

        return cls(
            0,
            zeros(inputs),
            zeros(outputs),
            zeros(outputs),
            zeros(inputs, inputs),
            zeros(inputs, outputs),
            zeros(outputs),
            zeros(outputs),
        )

    def add(self, inputs: Tensor, residuals: Tensor, targets: Tensor) -> None:
        """Add equations, in place: (G, N, D), (G, N, O), (G, N, O)."""
        self.count += inputs.shape[1]
        self.inputs += inputs.sum(1)
        self.residuals += residuals.sum(1)
        self.targets += targets.sum(1)
        for start in range(0, inputs.shape[2], BLOCK):
            stop = min(start + BLOCK, inputs.shape[2])
            block = inputs[:, :, start:stop].transpose(1, 2) @ inputs[:, :, :stop]
            self.lower[:, start:stop, :stop] += block
        self.cross += inputs.transpose(1, 2) @ residuals
        self.squares += residuals.square().sum(1)
        self.target_squares += targets.square().sum(1)

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        """All equations of both."""
        return NormalEquations(
            self.count + other.count,
            self.inputs + other.inputs,
            self.residuals + other.residuals,
            self.targets + other.targets,
            self.lower + other.lower,
            self.cross + other.cross,
            self.squares + other.squares,
            self.target_squares + other.target_squares,
        )

    @property
    def gram(self) -> Tensor:
        """Sum of inputs times inputs, (G, D, D), symmetric."""
        lower = self.lower.tril()
        return lower + lower.tril(-1).transpose(1, 2)

    def is_finite(self) -> bool:
        """Whether every input and residual was a number."""
        sums = self.inputs.sum() + self.squares.sum() + self.target_squares.sum()
        return bool(torch.isfinite(sums + self.lower.diagonal(dim1=1, dim2=2).sum()))

    def target_variance(self) -> float:
        """Sum of the targets' squared distances from their means."""
        if not self.count:
            return 0.0
        total = self.target_squares - self.targets.square() / self.count
        return max(0.0, float(total.sum()))

    def solver(self, *, intercept: bool) -> "Solver":
        """These equations made ready for several ridges."""
        return Solver(self, intercept=intercept)

    def judge(self) -> Callable[["WeightStep"], float]:
        """`error` for several steps: what all of them need is made once."""
        return partial(self.error, gram=self.gram)

    def error(self, step: "WeightStep", gram: Tensor | None = None) -> float:
        """Sum of the squares that are left when weights and bias change by this.

        Args:
            step: The change.
            gram: What `gram` is, where it is known: making it takes as long as using it.
        """
        change, shift = step.change, step.shift
        squares = self.squares - 2 * shift * self.residuals + self.count * shift.square()
        if change is not None:
            explained = 2 * (self.cross.transpose(1, 2) * change).sum(2)
            reread = ((change @ (self.gram if gram is None else gram)) * change).sum(2)
            both = 2 * shift * (change @ self.inputs.unsqueeze(2)).squeeze(2)
            squares = squares - explained + reread + both
        return max(0.0, float(squares.sum()))


@dataclass(frozen=True, eq=False)
class WeightStep:
    """A change of a layer's weights and bias."""

    change: Tensor | None
    """(G, O, D); None where the weights stay."""
    shift: Tensor
    """What is added to the bias, or left to the BatchNorm behind, (G, O)."""
    ridge: float | None = None
    """In units of the mean diagonal; None where the weights stay."""


class Solver:
    """Equations made ready for several ridges."""

    def __init__(self, equations: NormalEquations, *, intercept: bool) -> None:
        gram, cross = equations.gram, equations.cross
        if intercept:
            mean = equations.inputs / equations.count
            gram = gram - mean.unsqueeze(2) * equations.inputs.unsqueeze(1)
            cross = cross - mean.unsqueeze(2) * equations.residuals.unsqueeze(1)
        scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=0)
        self._constant = not bool((scale > 0).any())
        self._scale = torch.where(scale > 0, scale, 1.0)
        self._gram, self._cross = gram, cross
        self._equations, self._intercept = equations, intercept

    def step(self, ridge: float) -> WeightStep | None:
        """The change of least squares, pulled towards no change.

        Args:
            ridge: In units of the mean diagonal of what is inverted.

        Returns:
            None where all inputs are constant. The ridge is raised tenfold while Cholesky fails.
        """
        for _ in range(0 if self._constant else 12):
            loaded = self._gram.clone()
            loaded.diagonal(dim1=1, dim2=2).add_(ridge * self._scale.unsqueeze(1))
            factor, failed = torch.linalg.cholesky_ex(loaded)
            if not bool(failed.any()):
                change = torch.cholesky_solve(self._cross, factor).transpose(1, 2)
                if bool(torch.isfinite(change).all()):
                    return WeightStep(change, self._shift(change), ridge)
            ridge *= 10
        return None

    def _shift(self, change: Tensor) -> Tensor:
        equations = self._equations
        if not self._intercept:
            return torch.zeros_like(equations.residuals)
        shift = equations.residuals - (change @ equations.inputs.unsqueeze(2)).squeeze(2)
        return shift / equations.count
