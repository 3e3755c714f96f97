"""Layers that run again in the backward pass: statistics are those of the plain network."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from selector.errors import SelectorError
from selector.network.groups import Group
from selector.network.tracing import find_groups
from selector.saliency.registry import METRICS
from selector.saliency.scoring import needs_of, score, score_signals
from selector.statistics.collect import measure_signals
from tests.networks import data, randomise, state_of
from tests.scored import close

Run = Callable[[nn.Module, Tensor], Tensor]
TWICE = {"grasp"}
"""Metrics that differentiate twice, which reentrant checkpointing cannot do."""


def plainly(part: nn.Module, x: Tensor) -> Tensor:
    return part(x)


def reentrant(part: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(part, x, use_reentrant=True)


def not_reentrant(part: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(part, x, use_reentrant=False)


class _Again(torch.autograd.Function):
    """A user's own: runs a part without a gradient, and once more when the gradient comes."""

    @staticmethod
    def forward(ctx, part: nn.Module, x: Tensor, *weights: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.part, ctx.weights = part, weights
        ctx.save_for_backward(x)
        return part(x)

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        x = ctx.saved_tensors[0].detach().requires_grad_(True)
        with torch.enable_grad():
            output = ctx.part(x)
        found = torch.autograd.grad(output, [x, *ctx.weights], slope, allow_unused=True)
        return (None, *found)


def ones_own(part: nn.Module, x: Tensor) -> Tensor:
    weights = [p for p in part.parameters() if p.requires_grad]
    return _Again.apply(part, x, *weights)


class Twice(nn.Module):
    """A layer that runs twice in a part, and an activation that writes over its input."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.out(torch.tanh(self.same(torch.tanh(self.same(x))))))


class Parts(nn.Module):
    """A stem, parts that a function runs, and a head."""

    def __init__(self, run: Run, whole: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(True))
        self.one = Twice()
        self.two = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 6, 1))
        self.head = nn.Linear(6, 5)
        self.run, self.whole = run, whole

    def forward(self, images: Tensor) -> Tensor:
        x = self.run(self.stem, images) if self.whole else self.stem(images)
        x = self.run(self.one, x)
        return self.head(torch.relu(x + self.run(self.two, x)).mean((2, 3)))


def both(run: Run, whole: bool) -> tuple[nn.Module, nn.Module, dict[str, Group]]:
    plain, again = (randomise(Parts(r, whole).double()).eval() for r in (plainly, run))
    groups = find_groups(plain, data()[0][0]).required()
    return plain, again, dict(groups)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("run", [reentrant, not_reentrant, ones_own])
def test_scores_are_those_of_the_network_without_checkpoints(run: Run, whole: bool) -> None:
    plain, again, groups = both(run, whole)
    names = [name for name in METRICS if name not in TWICE]
    if run is ones_own:
        # Its forward has no gradient to the images, so the first part must not be its own.
        names = [name for name in names if name != "synflow"]
    before = state_of(again)
    needs = needs_of(names) | {"pairs"}
    expected, found = (measure_signals(m, data(), groups, needs=needs) for m in (plain, again))
    assert state_of(again) == before
    slow, fast = (score_signals(signals, names) for signals in (expected, found))
    for group in groups:
        for metric, values in slow[group].items():
            assert close(fast[group][metric], values, 1e-9), (group, metric)
        assert found[group].at_consumers.positions == expected[group].at_consumers.positions
        assert found[group].run == expected[group].run
        for mode, pairs in expected[group].pairs.items():
            one, other = torch.tensor(found[group].pairs[mode].second), torch.tensor(pairs.second)
            assert close(one, other, 1e-9)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("run", [reentrant, not_reentrant])
def test_scoring_finds_the_groups_of_checkpointed_networks(run: Run, whole: bool) -> None:
    plain, again, _ = both(run, whole)
    expected, found = (score(m, data()) for m in (plain, again))
    assert expected.keys() == found.keys()
    for group, metrics in expected.items():
        for metric, values in metrics.items():
            assert close(found[group][metric], values, 1e-9), (group, metric)


def test_an_optimizer_in_the_backward_pass_does_not_step() -> None:
    _, model, groups = both(reentrant, False)
    weight = model.get_parameter("two.0.weight")
    weight.grad = torch.ones_like(weight)

    def step(parameter: Tensor) -> None:
        raise AssertionError("the caller's hook ran")

    weight.register_post_accumulate_grad_hook(step)
    before = state_of(model)
    measure_signals(model, data(), groups)
    assert state_of(model) == before
    loss = model(data()[0][0].requires_grad_()).sum()
    with pytest.raises(AssertionError, match="the caller's hook ran"):
        loss.backward()


def test_a_second_differentiation_of_reentrant_checkpoints_is_refused() -> None:
    _, model, groups = both(reentrant, False)
    with pytest.raises(SelectorError, match="use_reentrant=False"):
        measure_signals(model, data(), groups, needs={"hessian"})
    plain, again, groups = both(not_reentrant, False)
    one, other = (
        score_signals(measure_signals(m, data(), groups, needs={"hessian"}), ["grasp"])
        for m in (plain, again)
    )
    for group in groups:
        assert close(one[group]["grasp"], other[group]["grasp"], 1e-9)


def test_checkpointed_sequences_are_counted_once() -> None:
    class Sequence(nn.Module):
        def __init__(self, reentrant: bool | None) -> None:
            super().__init__()
            layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()]
            self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head, self.reentrant = nn.Linear(5, 5), reentrant

        def forward(self, x: Tensor) -> Tensor:
            if self.reentrant is None:
                return self.head(self.body(x))
            return self.head(checkpoint_sequential(self.body, 2, x, use_reentrant=self.reentrant))

    plain, *others = (randomise(Sequence(k).double()).eval() for k in (None, True, False))
    groups = find_groups(plain, data()[0][0]).required()
    expected, *found = (score_signals(measure_signals(m, data(), groups)) for m in (plain, *others))
    for scores in found:
        for group, metrics in expected.items():
            for metric, values in metrics.items():
                assert close(scores[group][metric], values, 1e-9), (group, metric)


def test_a_memory_efficient_densenet_scores_as_the_plain_one() -> None:
    from torchvision.models.densenet import DenseNet

    def net(efficient: bool) -> nn.Module:
        torch.manual_seed(0)
        return DenseNet(8, (2, 2), 8, 2, num_classes=5, memory_efficient=efficient).double().eval()

    batches = data(6, 3, shape=(3, 32, 32))
    names = ["mean_activation", "apoz", "wanda", "taylor", "fisher", "jacobian", "obd"]
    expected, found = (score(net(efficient), batches, names) for efficient in (False, True))
    assert expected.keys() == found.keys()
    for group, metrics in expected.items():
        for metric, values in metrics.items():
            assert close(found[group][metric], values, 1e-9), (group, metric)


def test_nothing_warns_where_the_first_part_is_checkpointed() -> None:
    _, model, groups = both(reentrant, True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        measure_signals(model, data(), groups)
    assert not seen


def test_a_group_that_the_gradient_does_not_reach_is_named() -> None:
    class Frozen(Parts):
        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.one(self.stem(images))
            return self.head(torch.relu(x + self.two(x)).mean((2, 3)))

    plain, _, groups = both(plainly, False)
    frozen = Frozen(plainly).double().eval()
    frozen.load_state_dict(plain.state_dict())
    one, other = (
        score_signals(measure_signals(m, data(), groups, needs={"forward"}), ["l1", "apoz"])
        for m in (plain, frozen)
    )
    for group in groups:
        assert torch.equal(one[group]["apoz"], other[group]["apoz"])
    with pytest.raises(SelectorError, match=r"does not depend on group 'stem\.0'"):
        measure_signals(frozen, data(), groups)
    assert measure_signals(frozen, data(), {"two.0": groups["two.0"]})
