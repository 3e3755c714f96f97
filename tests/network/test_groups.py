"""The law of removal, what is refused and why, and what everything costs before and after."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from selector.errors import SelectorError
from selector.network.groups import find_group
from selector.network.masking import masked
from selector.network.surgery import Cut, apply_cuts, cuts_of, temporarily_cut
from selector.network.tracing import find_groups
from tests.laws import check_costs, check_law, check_structure, check_totals, some_channels
from tests.networks import STYLES, data, randomise, small, small_networks, state_of


@settings(deadline=None, max_examples=20)
@given(model=small_networks(), seed=st.integers(0, 10_000))
def test_the_law_holds_on_small_networks(model: nn.Module, seed: int) -> None:
    images, generator = data(6, 6, seed=seed)[0][0], torch.Generator().manual_seed(seed)
    groups = find_groups(model, images[:3])
    check_structure(model, groups)
    assert "stem" in groups.prunable
    assert "head" in groups.refused
    removals = [(g, some_channels(g, generator)) for g in groups.prunable.values()]
    for removal in removals:
        check_law(model, images, [removal], 1e-5)
    check_law(model, images, removals, 1e-5)


@settings(deadline=None, max_examples=15)
@given(model=small_networks(acts=("relu", "gelu")))
def test_costs_of_small_networks(model: nn.Module) -> None:
    check_costs(model, torch.ones(3, 3, 8, 8, dtype=torch.float64))


def test_costs_with_a_slope_for_each_channel() -> None:
    check_costs(small("plain", act="prelu"), torch.ones(3, 3, 8, 8, dtype=torch.float64))


def test_a_layer_called_twice_costs_twice_and_is_judged_by_the_law() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.again = nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            return self.head(torch.relu(self.again(torch.relu(self.again(x))))).mean((2, 3))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Twice().double().eval()
    images = data(4, 4)[0][0]
    check_totals(model, images)
    for group in find_groups(model, images).prunable.values():
        check_law(model, images, [(group, [1])], 1e-5)


class Interrupted(nn.Module):
    """Four layers with something between the first two that may not let single channels go."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.between = between
        self.middle = nn.Conv2d(8, 6, 3, padding=1)
        self.after = nn.Conv2d(6, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.middle(self.between(self.stem(x))))
        return self.head(torch.relu(self.after(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("between", "kind"),
    [
        (nn.Softmax(1), "softmax over all of them"),
        (nn.LocalResponseNorm(3, alpha=1.0), "neighbouring channels are mixed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_what_mixes_channels_is_refused_by_name_and_the_rest_goes_on(
    between: nn.Module, kind: str
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Interrupted(copy.deepcopy(between)).eval()
    images = data(3, 3, dtype=torch.float32)[0][0]
    groups = find_groups(model, images)
    assert "stem" not in groups.prunable
    assert kind in groups.refused["stem"]
    assert {"middle", "after"} <= groups.prunable.keys()
    for name in ("middle", "after"):
        check_law(model, images, [(groups.prunable[name], [0, 2])], 1e-4)


def test_layer_norm_over_a_width() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU())
    model.append(nn.Linear(4, 3))
    images = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()
    groups = find_groups(randomise(model.double()).eval(), images)
    assert list(groups.prunable) == ["0", "3"]
    check_law(model, images, [(groups.prunable["0"], [1, 5])], 1e-9)


class Viewing(nn.Module):
    """A view with a number of channels written down in it."""

    def __init__(self, *, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.middle(torch.relu(self.stem(x))))
        return self.head(x.view(-1, 4 * 8 * 8) if self.fixed else x.view(len(x), -1))


def test_a_view_with_a_number_in_it_is_refused_or_right() -> None:
    images = data(4, 4)[0][0]
    for fixed in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Viewing(fixed=fixed).double().eval()
        groups = find_groups(model, images)
        assert "stem" in groups.prunable
        assert ("middle" in groups.refused) == fixed
        for group in groups.prunable.values():
            check_law(model, images, [(group, [1, 3])], 1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("style", STYLES)
def test_finding_masking_and_cutting_leave_the_network_as_found(style: str, training: bool) -> None:
    model = small(style, norm=True).train(training)
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before, images = state_of(model), data()[0][0]
    groups = find_groups(model, images)
    assert state_of(model) == before
    group = groups.prunable["stem"]
    with masked(model, group, [0]):
        assert state_of(model) != before
    assert state_of(model) == before
    with pytest.raises(RuntimeError, match="in between"), masked(model, group, [0]):
        raise RuntimeError("in between")
    assert state_of(model) == before
    with temporarily_cut(model, [(group, [0])]):
        assert state_of(model) != before
    assert state_of(model) == before
    with pytest.raises(RuntimeError, match="in between"), temporarily_cut(model, [(group, [0])]):
        raise RuntimeError("in between")
    assert state_of(model) == before


def test_an_empty_set_changes_nothing() -> None:
    model, images = small("plain"), data()[0][0]
    group = find_groups(model, images).prunable["stem"]
    expected = model(images)
    with masked(model, group, []):
        assert torch.equal(model(images), expected)


def test_cuts_keep_what_is_trained() -> None:
    model, images = small("plain", norm=True), data()[0][0]
    model.stem.weight.requires_grad_(False)
    group = find_groups(model, images).prunable["stem"]
    apply_cuts(model, cuts_of([(group, [1])]))
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert not flags.pop("stem.weight")
    assert all(flags.values())


@pytest.mark.parametrize(
    ("channels", "culprit"),
    [
        ([0, 0], "channel 0 of group 'stem' is named twice"),
        ([9], "no channel 9; it has 0 to 3"),
        ([-1], "no channel -1"),
        ([0, 1, 2, 3], "leave at least one"),
    ],
)
def test_a_channel_set_that_cannot_go_is_refused(channels: list[int], culprit: str) -> None:
    model = small("plain")
    group = find_groups(model, data()[0][0]).prunable["stem"]
    before = state_of(model)
    with pytest.raises(SelectorError, match=culprit), masked(model, group, channels):
        pass
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("cut", "culprit"),
    [
        (Cut("nowhere", "out", (0,)), "no layer 'nowhere'"),
        (Cut("act", "out", (0,)), "layer 'act' .ReLU. cannot lose"),
        (Cut("next", "in", (4,)), "layer 'next' has 4 'in' positions, the cut names 4"),
    ],
)
def test_cuts_of_another_network_change_nothing(cut: Cut, culprit: str) -> None:
    model = small("plain")
    before = state_of(model)
    with pytest.raises(SelectorError, match=culprit):
        apply_cuts(model, [Cut("stem", "out", (0,)), cut])
    assert state_of(model) == before


def test_an_unknown_group_is_named_with_the_known() -> None:
    groups = find_groups(small("plain"), data()[0][0]).prunable
    with pytest.raises(SelectorError, match="unknown group 'steam'; known: stem, next"):
        find_group(groups, "steam")


def test_a_parametrised_layer_is_refused_by_name_and_the_rest_goes_on() -> None:
    model = Interrupted(nn.Identity()).eval()
    nn.utils.parametrizations.orthogonal(model.after)
    groups = find_groups(model, data(3, 3, dtype=torch.float32)[0][0])
    assert "after" in groups.refused
    assert "stem" in groups.prunable
