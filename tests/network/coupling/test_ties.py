"""Weights that layers share stay shared, or their channels are not pruned."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from selector.errors import SelectorError
from selector.network.costs import count_costs
from selector.network.surgery import Cut, apply_cuts, cuts_of
from selector.network.tracing import find_groups
from selector.pruning.prune import prune
from tests.laws import check_law
from tests.networks import data, randomise


class Chain(nn.Module):
    """Four layers of one width in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.c, self.d = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.b(torch.relu(self.a(images)))))
        x = torch.relu(self.d(torch.relu(self.other(self.c(x)))))
        return self.head(x.mean((2, 3)))


class Trunk(Chain):
    """The same with a residual: `b` and `d` write the same channels."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.b(torch.relu(self.a(images))))
        x = x + self.other(self.d(torch.relu(self.c(torch.relu(x)))))
        return self.head(torch.relu(x).mean((2, 3)))


def tied(kind: type[Chain], what: str) -> Chain:
    model = randomise(kind().double()).eval()
    assert isinstance(model, Chain)
    if what == "weight":
        model.c.weight = model.b.weight
    elif what == "bias":
        model.d.register_parameter("bias", model.b.bias)
    elif what == "affine":
        model.other.weight, model.other.bias = model.norm.weight, model.norm.bias
    elif what == "storage":
        model.c.weight = nn.Parameter(model.b.weight.detach().transpose(0, 1))
    elif what == "kinds":
        model.other.register_parameter("bias", model.a.bias)
    return model


def test_what_would_tear_a_tie_is_refused_by_name() -> None:
    model, batches = tied(Chain, "storage"), data()
    groups = find_groups(model, batches[0][0])
    assert groups.prunable.keys() == {"d"}
    for name in ("a", "b", "c"):
        assert "share one parameter" in groups.refused[name]
    check_ties(model, prune(model, batches, ratio=0.3, rounds=1, criterion="l1").model)


def check_ties(model: nn.Module, pruned: nn.Module) -> None:
    """Both networks share as many parameters."""
    doubles = [
        len(list(net.named_parameters(remove_duplicate=False))) - len(list(net.parameters()))
        for net in (model, pruned)
    ]
    assert doubles[0] == doubles[1]


@pytest.mark.parametrize(
    ("what", "together"),
    [
        ("weight", ("a", "b", "c")),
        ("bias", ("b", "d")),
        ("affine", ("b", "c")),
        ("kinds", ("a", "c")),
    ],
)
def test_what_a_tie_couples_goes_together(what: str, together: tuple[str, ...]) -> None:
    model, batches = tied(Chain, what), data()
    groups = find_groups(model, batches[0][0])
    assert groups.prunable[together[0]].producers == together
    for group in groups.prunable.values():
        check_law(model, batches[0][0], [(group, [0, 3])], 1e-9)
    check_ties(model, prune(model, batches, ratio=0.3, rounds=2, criterion="l1").model)


@pytest.mark.parametrize("what", ["bias", "affine"])
def test_a_tie_inside_one_group_is_cut_and_stays(what: str) -> None:
    model, batches = tied(Trunk, what), data()
    groups = find_groups(model, batches[0][0])
    assert {"a", "b", "c"} == groups.prunable.keys()
    check_law(model, batches[0][0], [(groups.prunable["b"], [0, 3])], 1e-9)
    result = prune(model, batches, ratio=0.5, rounds=2, criterion="l1").model
    assert len(result.b.bias) == 3
    if what == "bias":
        assert result.d.bias is result.b.bias
    else:
        assert result.other.weight is result.norm.weight
        assert result.other.bias is result.norm.bias
    small = copy.deepcopy(model)
    apply_cuts(small, cuts_of([(groups.prunable["b"], [0, 3])]))
    parameters = sum(p.numel() for p in small.parameters())
    costs = groups.costs
    assert costs.total("parameters") == sum(p.numel() for p in model.parameters())
    assert costs.total("parameters", {groups.prunable["b"]: 2}) == parameters
    assert count_costs(small, batches[0][0]).total("parameters") == parameters


class Autoencoder(nn.Module):
    """The decoder reads with the encoder's own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 6, 3, padding=1)
        self.decoder = nn.ConvTranspose2d(6, 3, 3, padding=1)
        self.decoder.weight = self.encoder.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(images)))


def test_an_autoencoder_with_one_weight_is_cut_on_both_sides() -> None:
    model, batches = randomise(Autoencoder().double()).eval(), data()
    images = [(x, x) for x, _ in batches]
    loss = nn.functional.mse_loss
    assert find_groups(model, batches[0][0]).prunable.keys() == {"encoder"}
    result = prune(model, images, ratio=0.5, rounds=1, criterion="l1", loss=loss)
    assert result.model.encoder.weight is result.model.decoder.weight
    assert result.model.encoder.weight.shape == (3, 3, 3, 3)


class Of(nn.Module):
    """A parametrisation that gives the parameter of another layer."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.source = weight

    def forward(self, weight: Tensor) -> Tensor:
        return self.source + 0 * weight


def test_a_tie_by_parametrisation_is_refused() -> None:
    model, images = tied(Chain, "nothing"), data()[0][0]
    parametrize.register_parametrization(model.c, "weight", Of(model.b.weight))
    groups = find_groups(model, images)
    assert {"a", "b", "c"} <= groups.refused.keys()
    assert groups.prunable.keys() == {"d"}


def test_cuts_that_would_tear_a_tie_are_refused_before_anything_is_cut() -> None:
    model = tied(Trunk, "bias")
    before = {name: tuple(p.shape) for name, p in model.named_parameters()}
    with pytest.raises(SelectorError, match=r"'b\.bias' and 'd\.bias' share one parameter"):
        apply_cuts(model, [Cut("b", "out", (0,)), Cut("d", "out", (1,))])
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == before
