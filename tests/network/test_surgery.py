"""Layers are cut as the network holds them: under any name, in any memory format, called anyhow."""

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from selector.network.groups import Group
from selector.network.surgery import apply_cuts, cuts_of, temporarily_cut
from selector.network.tracing import find_groups
from selector.oracle.oracle import loss_changes
from selector.pruning.prune import prune
from tests.laws import check_law, some_channels
from tests.networks import STYLES, data, randomise, small, state_of


@pytest.mark.parametrize("kind", ["conv", "depthwise", "grouped", "transposed", "3d"])
def test_weights_keep_their_memory_format(kind: str) -> None:
    middle: nn.Module = {
        "conv": nn.Conv2d(8, 8, 3),
        "3d": nn.Conv3d(8, 8, 3),
        "depthwise": nn.Conv2d(8, 8, 3, groups=8),
        "grouped": nn.Conv2d(8, 8, 3, groups=2),
        "transposed": nn.ConvTranspose2d(8, 8, 3),
    }[kind]
    first, last = (nn.Conv3d, nn.Conv3d) if kind == "3d" else (nn.Conv2d, nn.Conv2d)
    form = torch.channels_last_3d if kind == "3d" else torch.channels_last
    layers = [first(3, 8, 3), nn.ReLU(), middle, nn.ReLU(), last(8, 6, 3), nn.ReLU(), nn.Flatten()]
    shape = (3, 9, 9, 9) if kind == "3d" else (3, 9, 9)
    with torch.no_grad():
        width = len(nn.Sequential(*layers)(torch.ones(1, *shape))[0])
    net = nn.Sequential(*layers, nn.Linear(width, 5)).double()
    model, batches = randomise(net).to(memory_format=form).eval(), data(shape=shape)
    result = prune(model, batches, ratio=0.5, rounds=2, criterion="l1").model
    assert result[0].out_channels == 4
    for number in (0, 2, 4):
        weight = result[number].weight
        assert weight.is_contiguous(memory_format=form)
        assert weight.is_contiguous() == model[number].weight.is_contiguous()


def test_gradients_and_flags_of_what_is_left_stay() -> None:
    model = small("plain", norm=True)
    group = find_groups(model, data()[0][0]).prunable["stem"]
    model.next.bias.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = 2 * parameter.detach()
    apply_cuts(model, cuts_of([(group, [1])]))
    assert not model.next.bias.requires_grad
    for parameter in model.parameters():
        assert torch.equal(parameter.grad, 2 * parameter.detach())


class Renamed(nn.Module):
    """A layer under three names: its own, in a sequence, and in a plain list."""

    def __init__(self, *, through: str) -> None:
        super().__init__()
        self.through = through
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.body = nn.Sequential(self.a, nn.ReLU(), self.b)
        self.hidden = [self.b]
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        if self.through == "body":
            x = self.body(images)
        else:
            x = self.hidden[0](torch.relu(self.body[0](images)))
        return self.head(torch.relu(x).mean((2, 3)))


@pytest.mark.parametrize("through", ["body", "list"])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_a_layer_under_several_names_is_one_layer(through: str, engine: str) -> None:
    model, batches = randomise(Renamed(through=through).double()).eval(), data()
    groups = find_groups(model, batches[0][0])
    assert groups.prunable.keys() == {"a", "b"}
    check_law(model, batches[0][0], [(groups.prunable["a"], [0, 4])], 1e-9)
    changes = loss_changes(model, batches, "a", [[0, 4]], engine=engine)  # type: ignore[arg-type]
    small = copy.deepcopy(model)
    apply_cuts(small, cuts_of([(groups.prunable["a"], [0, 4])]))
    assert small.body[0] is small.a
    with torch.no_grad():
        losses = [
            nn.functional.cross_entropy(net(x), y, reduction="sum")
            for net in (small, model)
            for x, y in batches
        ]
    assert changes[0].nats == pytest.approx(float(sum(losses[:3]) - sum(losses[3:])) / 12)
    result = prune(model, batches, ratio=0.5, rounds=2, criterion="fisher").model
    assert result.body[0] is result.a
    assert result.a.out_channels == result.hidden[0].in_channels == 3


class ByName(nn.Module):
    """Layers that are called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.b, self.second = nn.Conv2d(6, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.act, self.head = nn.ReLU(), nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(input=self.norm(input=self.a(input=images)))
        x = self.act(input=self.second(input=self.b(input=x)))
        return self.head(input=x.mean((2, 3)))


class ByPlace(ByName):
    """The same, called by position."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(self.norm(self.a(images)))
        return self.head(self.act(self.second(self.b(x))).mean((2, 3)))


@pytest.mark.parametrize("mode", ["plain", "compensated", "recalibrated"])
def test_layers_called_by_keyword_are_measured_alike(mode: str) -> None:
    batches = data(16, 8)
    found = [
        loss_changes(randomise(kind().double()).eval(), batches, "a", [[0], [1, 4]], mode=mode)  # type: ignore[arg-type]
        for kind in (ByName, ByPlace)
    ]
    assert [c.nats for c in found[0]] == pytest.approx([c.nats for c in found[1]])
    assert found[0][0].nats != 0


@pytest.mark.parametrize("style", STYLES)
def test_a_layer_cut_for_a_while_is_the_same_object(style: str) -> None:
    model = small(style, norm=True)
    layers, before = dict(model.named_modules()), state_of(model)
    for group in find_groups(model, data()[0][0]).prunable.values():
        channels = some_channels(group, torch.Generator().manual_seed(0))
        with temporarily_cut(model, [(group, channels)]):
            assert dict(model.named_modules()) == layers
        assert state_of(model) == before


def test_two_networks_are_pruned_at_once() -> None:
    kinds = [("residual", True), ("plain", False), ("grouped", True), ("concat", False)]
    batches = data(16, 8)
    options = {"ratio": 0.5, "rounds": 2, "criterion": "oracle"}

    def removals(style: str, norm: bool) -> dict[str, tuple[int, ...]]:
        result = prune(small(style, 6, norm=norm), batches, **options)  # type: ignore[arg-type]
        return dict(result.plan.removals)

    expected = [removals(*kind) for kind in kinds]
    found: dict[int, object] = {}

    def work(number: int) -> None:
        try:
            found[number] = removals(*kinds[number])
        except BaseException as error:  # Shown by the assertion below.
            found[number] = error

    for _ in range(2):
        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(kinds))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[n] for n in range(len(kinds))] == expected


def test_a_group_is_hashable_and_equal_by_value() -> None:
    group = find_groups(small("plain"), data()[0][0]).prunable["stem"]
    assert len({group, copy.deepcopy(group)}) == 1
    assert isinstance(group, Group)
