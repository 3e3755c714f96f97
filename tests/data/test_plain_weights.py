"""Layers with weight or spectral norm are pruned exactly, and keep their norm."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

import selector
from selector.data.plain_weights import make_plain, normalise_again, plain_weights
from selector.network.surgery import Cut
from tests.networks import randomise

GENERATOR = torch.Generator().manual_seed(0)
Norm = Callable[[nn.Module], nn.Module]


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


NORMS: dict[str, Norm] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of the whole": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "spectral norm": parametrizations.spectral_norm,
    "weight norm by a hook": old_weight_norm,
    "spectral norm by a hook": nn.utils.spectral_norm,
}


class Normed(nn.Module):
    """Convolutions, a transposed one, and a linear layer, all with a norm of their weights."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.first = norm(nn.Conv2d(3, 8, 3, padding=1))
        self.second = norm(nn.Conv2d(8, 6, 3, stride=2, padding=1))
        self.up = norm(nn.ConvTranspose2d(6, 7, 2, stride=2))
        self.head = norm(nn.Linear(7, 5))

    def forward(self, images: Tensor) -> Tensor:
        x = functional.leaky_relu(self.second(torch.tanh(self.first(images))), 0.1)
        return self.head(torch.tanh(self.up(x)).mean((2, 3)))


def made(name: str) -> Normed:
    torch.manual_seed(0)
    model = Normed(NORMS[name]).double()
    randomise(model)
    for _ in range(5):  # Steps of the power iteration.
        model.train()(images_of(1))
    return model.eval()


def images_of(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=GENERATOR)


def everything(model: nn.Module) -> list[tuple[str, int]]:
    hooks = [(n, len(m._forward_pre_hooks)) for n, m in model.named_modules()]
    tensors = [(n, id(t)) for n, t in [*model.named_parameters(), *model.named_buffers()]]
    return [*hooks, *tensors, *((type(m).__name__, 0) for m in model.modules())]


@pytest.mark.parametrize("name", NORMS)
def test_a_network_with_plain_weights_gives_the_same_and_comes_back(name: str) -> None:
    model, images = made(name), images_of(2)
    expected, before = model(images), everything(model)
    with plain_weights(model):
        assert {n.rpartition(".")[2] for n, _ in model.named_parameters()} == {"weight", "bias"}
        torch.testing.assert_close(model(images), expected)
        twin = copy.deepcopy(model)
    assert everything(model) == before
    assert torch.equal(model(images), expected)
    normalise_again(twin)
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert torch.equal(twin(images), expected)


@pytest.mark.parametrize("name", NORMS)
def test_another_weight_is_made_by_the_norm(name: str) -> None:
    model, images = made(name), images_of(2)
    make_plain(model)
    with torch.no_grad():
        model.first.weight[2] = 0
        model.second.weight.mul_(torch.rand(6, 8, 3, 3, generator=GENERATOR))
    expected = model(images)
    normalise_again(model)
    assert "weight" not in dict(model.first.named_parameters())
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-12)
    if "spectral" in name:
        with torch.no_grad():
            model.train()
            for _ in range(60):
                model(images)
        assert float(torch.linalg.matrix_norm(model.head.weight.detach(), 2)) == pytest.approx(
            1, rel=1e-2
        )


@pytest.mark.parametrize("name", NORMS)
def test_a_pruned_network_keeps_its_norms(name: str, tmp_path: Path) -> None:
    model = made(name)
    labels = torch.arange(8) % 5
    batches = [(images_of(8), labels) for _ in range(2)]
    before, fresh = everything(model), images_of(3)
    result = selector.prune(model, batches, ratio=0.4, rounds=2, criterion="fisher")
    assert everything(model) == before
    assert set(result.plan.removals) == {"first", "second", "up"}
    small = result.model
    assert [n for n, _ in small.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert type(small.first).__name__ == type(model.first).__name__
    bare = selector.apply_plan(model, result.plan)
    torch.testing.assert_close(bare(fresh), masked_outputs(model, result.cuts, fresh))
    selector.save_pruned(small, tmp_path / "small.safetensors")
    again = selector.load_pruned(
        lambda: Normed(NORMS[name]).double(), tmp_path / "small.safetensors"
    )
    assert torch.equal(again.eval()(fresh), small(fresh))
    functional.cross_entropy(small.train()(batches[0][0]), labels).backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    before_step = small.eval()(fresh)
    torch.optim.SGD(small.parameters(), 0.01).step()
    assert not torch.equal(small(fresh), before_step)


def masked_outputs(model: Normed, cuts: tuple[Cut, ...], images: Tensor) -> Tensor:
    """What the network gives with zeros where channels go, by hooks of our own."""
    handles = []
    for cut in cuts:
        if cut.side == "out":
            gone = torch.tensor(cut.indices)
            layer = model.get_submodule(cut.layer)

            def zero(_: nn.Module, __: object, output: Tensor, gone: Tensor = gone) -> Tensor:
                return output.index_fill(1, gone, 0)

            handles.append(layer.register_forward_hook(zero))
    with torch.no_grad():
        found: Tensor = model(images)
    for handle in handles:
        handle.remove()
    return found


def test_scores_and_losses_see_the_weight_that_the_norm_makes() -> None:
    model = made("weight norm")
    batches = [(images_of(8), torch.arange(8) % 5)]
    plain = made("weight norm")
    for layer in (plain.first, plain.second, plain.up, plain.head):
        parametrize.remove_parametrizations(layer, "weight")
    normed, expected = (selector.score(m, batches) for m in (model, plain))
    for group, scores in expected.items():
        for metric, values in scores.items():
            torch.testing.assert_close(normed[group][metric], values, equal_nan=True)


class Halved(nn.Module):
    """A parametrization of somebody's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def test_other_parametrizations_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)).eval()
    parametrize.register_parametrization(model[0], "weight", Halved())
    assert not make_plain(model)
    groups = selector.find_groups(model, torch.randn(2, 3, 4, 4))
    assert set(groups.prunable) == {"1"}
    assert "cannot be cut exactly" in groups.refused["0"]
