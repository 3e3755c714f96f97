"""What Torch-Pruning cannot follow refuses its groups by name, not the network, and not forever."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.network.coupling.dependency_graph import candidate_groups
from selector.network.tracing import find_groups
from selector.pruning.prune import prune
from tests.laws import check_law
from tests.networks import data, randomise

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_padding_is_no_slice_of_channels(dimensions: int, mode: str) -> None:
    make = CONVOLUTIONS[dimensions]
    layers = [
        make(3, 6, 3, padding=1, padding_mode=mode),
        nn.ReLU(),
        make(6, 4, 3, padding="same", padding_mode=mode),
        nn.ReLU(),
    ]
    model = randomise(nn.Sequential(*layers, nn.Flatten(2), Mean(), nn.Linear(4, 5)).double())
    images = torch.randn(4, 3, *[5] * dimensions, dtype=torch.float64)
    groups = find_groups(model, images)
    assert groups.prunable.keys() == {"0", "2"}
    assert model[0].padding_mode == model[2].padding_mode == mode
    for group in groups.prunable.values():
        check_law(model.eval(), images, [(group, [0, 2])], 1e-9)


class Mean(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(2)


class Padded(nn.Module):
    """Circular padding by hand, which nothing can tell from slices of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 6, 3), nn.Conv1d(6, 6, 3)
        self.third, self.head = nn.Conv1d(6, 4, 1), nn.Linear(4, 5)

    def forward(self, series: Tensor) -> Tensor:
        x = torch.relu(self.first(functional.pad(series, (1, 1), mode="circular")))
        x = torch.relu(self.second(functional.pad(x, (1, 1), mode="circular")))
        return self.head(torch.relu(self.third(x)).mean(2))


def test_a_walk_in_circles_ends() -> None:
    model = randomise(Padded().double()).eval()
    series = torch.randn(4, 3, 9, dtype=torch.float64)
    _, refused = candidate_groups(model, series)
    assert "circles" in refused["first"]
    assert find_groups(model, series).prunable.keys() == {"first", "second", "third"}


class Shuffled(nn.Module):
    """A channel shuffle and a split in the middle of plain layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.stem = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.after, self.last = nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.stem(torch.relu(self.before(images))))
        one, other = x.chunk(2, 1)
        x = torch.cat([self.left(one), self.right(other)], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        x = torch.relu(self.after(x.view(batch, -1, height, width)))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def test_a_channel_shuffle_refuses_its_own_groups() -> None:
    model, batches = randomise(Shuffled().double()).eval(), data()
    groups = find_groups(model, batches[0][0])
    assert {"before", "after", "last"} <= groups.prunable.keys()
    for group in groups.prunable.values():
        check_law(model, batches[0][0], [(group, [0])], 1e-9)
    assert prune(model, batches, ratio=0.3, rounds=2, criterion="l1").plan.choices


def test_a_shufflenet_keeps_what_can_be_pruned() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.shufflenet_v2_x0_5(num_classes=5).eval()
    images = torch.randn(2, 3, 32, 32)
    groups = find_groups(model, images)
    assert len(groups.prunable) >= 10
    assert groups.refused


@pytest.mark.parametrize("where", ["cat", "add", "alone"])
def test_one_slope_for_all_channels_is_no_channel(where: str) -> None:
    class Sloped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.one = nn.Conv2d(3, 4, 3), nn.PReLU()
            if where != "alone":
                self.b, self.other = nn.Conv2d(3, 4, 3), nn.PReLU()
            self.after = nn.Conv2d(8 if where == "cat" else 4, 6, 1)
            self.head = nn.Linear(6, 5)

        def forward(self, images: Tensor) -> Tensor:
            x = self.one(self.a(images))
            if where != "alone":
                other = self.other(self.b(images))
                x = torch.cat([x, other], 1) if where == "cat" else x + other
            return self.head(self.one(self.after(x)).mean((2, 3)))

    model, images = randomise(Sloped().double()).eval(), data()[0][0]
    groups = find_groups(model, images)
    assert {"a", "after"} <= groups.prunable.keys()
    if where == "cat":
        assert "b" in groups.prunable
    for group in groups.prunable.values():
        check_law(model, images, [(group, [0, 2])], 1e-9)


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_instance_norm_without_parameters_is_cut_in_every_round(
    dimensions: int, tracked: bool
) -> None:
    make = CONVOLUTIONS[dimensions]
    norm = [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d][dimensions - 1]
    layers = [make(3, 8, 3), norm(8, track_running_stats=tracked), nn.ReLU(), make(8, 6, 1)]
    net = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(2), Mean(), nn.Linear(6, 5))
    model = randomise(net.double()).eval()
    batches = data(shape=(3, *[6] * dimensions))
    groups = find_groups(model, batches[0][0])
    assert {"0", "3"} <= groups.prunable.keys()
    check_law(model, batches[0][0], [(groups.prunable["0"], [1, 5])], 1e-9)
    result = prune(model, batches, ratio=0.5, rounds=3, criterion="fisher").model
    assert result[0].out_channels == result[1].num_features == 4


def test_hooks_of_a_trace_that_fails_are_taken_off() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                x = torch.relu(self.stem(images)).mean((2, 3))
                return self.head(x)

    model = Failing().double()
    with pytest.raises(Exception, match="cannot be traced"):
        candidate_groups(model, data()[0][0])
    assert find_groups(model, data()[0][0]).prunable.keys() == {"stem"}
    assert not any(module._forward_hooks for module in model.modules())
