"""Equations kept as rows, of which there are few, give what their sums give."""

import pytest
import torch
from torch import Tensor

from selector.repair.few_equations import FewEquations
from selector.repair.least_squares import NormalEquations
from selector.repair.ridge_choice import RIDGES, choose_step, shifted, unchanged

GROUPS, INPUTS, OUTPUTS = 2, 30, 3


def both(count: int, seed: int, scale: float = 1.0) -> tuple[FewEquations, NormalEquations]:
    chance = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(GROUPS, count, *shape, generator=chance, dtype=torch.float64)

    few = FewEquations()
    many = NormalEquations.empty(GROUPS, INPUTS, OUTPUTS, torch.device("cpu"))
    inputs = drawn(INPUTS) + 2
    targets = inputs[:, :, :OUTPUTS] * scale + drawn(OUTPUTS) / 10
    for part in (slice(0, count // 3), slice(count // 3, None)):
        for equations in (few, many):
            equations.add(inputs[:, part], targets[:, part] - 1, targets[:, part])
    return few, many


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("ridge", RIDGES[2:])
def test_rows_and_sums_have_the_same_solution(ridge: float, intercept: bool) -> None:
    few, many = both(12, 0)
    found = few.solver(intercept=intercept).step(ridge)
    expected = many.solver(intercept=intercept).step(ridge)
    assert found is not None
    assert expected is not None
    assert found.ridge == expected.ridge
    assert torch.allclose(found.change, expected.change, atol=1e-9)
    assert torch.allclose(found.shift, expected.shift, atol=1e-9)
    others = both(7, 1)
    for one in (found, unchanged(few), shifted(few)):
        slow = others[1].judge()(one)
        assert others[0].judge()(one) == pytest.approx(slow, rel=1e-8)
        assert others[1].error(one) == pytest.approx(slow, rel=1e-12)


def test_rows_and_sums_say_the_same_of_themselves() -> None:
    few, many = both(12, 0)
    assert few.count == many.count == 12
    assert few.target_variance() == pytest.approx(many.target_variance())
    assert torch.allclose(few.residuals, many.residuals)
    assert (few + few).count == 24
    assert FewEquations().target_variance() == 0.0


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("bias", [False, True])
def test_rows_and_sums_choose_the_same_ridge(scale: float, bias: bool) -> None:
    fitting, held_out = both(20, 2, scale), both(8, 3, scale)
    found, expected = (
        choose_step(one, other, bias=bias, absorbed=False)
        for one, other in zip(fitting, held_out, strict=True)
    )
    assert found.step.ridge == expected.step.ridge
    assert found.before == pytest.approx(expected.before)
    assert found.after == pytest.approx(expected.after)
    assert torch.allclose(found.step.shift, expected.step.shift, atol=1e-7)


def test_constant_inputs_and_values_that_are_no_numbers() -> None:
    few = FewEquations()
    few.add(torch.ones(1, 4, 9), torch.rand(1, 4, 2), torch.rand(1, 4, 2))
    assert few.is_finite()
    assert few.solver(intercept=True).step(1e-3) is None
    few.add(torch.full((1, 2, 9), torch.inf), torch.rand(1, 2, 2), torch.rand(1, 2, 2))
    assert not few.is_finite()
