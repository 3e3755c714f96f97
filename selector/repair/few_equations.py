r"""Ridge regression from rows, for layers with fewer equations than unknowns.

A linear layer behind a flattened map may read 25,000 inputs of a few hundred images. Their products
would be gigabytes, and say no more than the rows. With rows X and residuals R,

.. math:: (X^T X + \rho I)^{-1} X^T R = X^T (X X^T + \rho I)^{-1} R

so that what is inverted has one row for each equation.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selector.repair.least_squares import WeightStep


@dataclass
class FewEquations:
    """The equations themselves: `residual = change @ inputs + shift`, for every output and group.

    Shapes: G groups, N equations, D inputs and O outputs of each; float64.
    """

    rows: list[Tensor] = field(default_factory=list)
    """Inputs, (G, N, D), visit by visit."""
    left: list[Tensor] = field(default_factory=list)
    """Residuals, (G, N, O)."""
    wanted: list[Tensor] = field(default_factory=list)
    """Targets, (G, N, O)."""

    @property
    def count(self) -> int:
        """Equations."""
        return sum(part.shape[1] for part in self.rows)

    def add(self, inputs: Tensor, residuals: Tensor, targets: Tensor) -> None:
        """Add equations: (G, N, D), (G, N, O), (G, N, O)."""
        if inputs.shape[1]:
            self.rows.append(inputs.clone())
            self.left.append(residuals.clone())
            self.wanted.append(targets.clone())

    def __add__(self, other: "FewEquations") -> "FewEquations":
        """All equations of both."""
        return FewEquations(
            self.rows + other.rows, self.left + other.left, self.wanted + other.wanted
        )

    @property
    def residuals(self) -> Tensor:
        """Sum of the residuals, (G, O)."""
        return self._joined(self.left).sum(1)

    def is_finite(self) -> bool:
        """Whether every input and residual that was added last was a number."""
        every = (*self.rows[-1:], *self.left[-1:], *self.wanted[-1:])
        return all(bool(torch.isfinite(part.sum(dtype=torch.float64))) for part in every)

    def target_variance(self) -> float:
        """Sum of the targets' squared distances from their means."""
        if not self.count:
            return 0.0
        targets = self._joined(self.wanted)
        return float((targets - targets.mean(1, keepdim=True)).square().sum())

    def error(self, step: WeightStep) -> float:
        """Sum of the squares that are left when weights and bias change by this."""
        total = 0.0
        for rows, left in zip(self.rows, self.left, strict=True):
            over = left.double() - step.shift.unsqueeze(1)
            if step.change is not None:
                over = over - rows.double() @ step.change.transpose(1, 2)
            total += float(over.square().sum())
        return total

    def judge(self) -> Callable[[WeightStep], float]:
        """`error` for several steps."""
        return self.error

    def solver(self, *, intercept: bool) -> "RowSolver":
        """These equations made ready for several ridges."""
        return RowSolver(self._joined(self.rows), self._joined(self.left), intercept=intercept)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, 1).double()


class RowSolver:
    """Equations made ready for several ridges."""

    def __init__(self, rows: Tensor, residuals: Tensor, *, intercept: bool) -> None:
        self._mean = rows.mean(1, keepdim=True) * intercept
        self._mean_left = residuals.mean(1, keepdim=True) * intercept
        self._rows, self._residuals = rows - self._mean, residuals - self._mean_left
        self._products = self._rows @ self._rows.transpose(1, 2)
        # The mean diagonal of the products of inputs, which has the same trace.
        trace = self._products.diagonal(dim1=1, dim2=2).sum(1)
        scale = (trace / rows.shape[2]).clamp(min=0)
        self._constant = not bool((scale > 0).any())
        self._scale = torch.where(scale > 0, scale, 1.0)

    def step(self, ridge: float) -> WeightStep | None:
        """As `Solver.step` of the same equations."""
        for _ in range(0 if self._constant else 12):
            loaded = self._products.clone()
            loaded.diagonal(dim1=1, dim2=2).add_(ridge * self._scale.unsqueeze(1))
            factor, failed = torch.linalg.cholesky_ex(loaded)
            if not bool(failed.any()):
                weights = torch.cholesky_solve(self._residuals, factor)
                change = weights.transpose(1, 2) @ self._rows
                if bool(torch.isfinite(change).all()):
                    shift = self._mean_left - self._mean @ change.transpose(1, 2)
                    return WeightStep(change, shift.squeeze(1), ridge)
            ridge *= 10
        return None
