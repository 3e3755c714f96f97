"""Channels that several layers share: a score is that of a gate on all of them at once."""

import pytest
import torch
from torch import Tensor, nn

from selector.network.groups import Group
from selector.network.tracing import find_groups
from selector.saliency.checks import Scene
from tests.networks import STYLES, data, randomise, small
from tests.reference import singles
from tests.reference_measuring import gate_effects, gated
from tests.scored import check_twins, close, scores_of

STEP = 1e-4


class DenseBlock(nn.Module):
    """Every layer reads what all the layers before it wrote, side by side."""

    def __init__(self, layers: int = 3, width: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        wide = [width * (number + 1) for number in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(inputs) for inputs in wide)
        self.layers = nn.ModuleList(nn.Conv2d(inputs, width, 3, padding=1) for inputs in wide)
        self.head = nn.Linear(width * (layers + 1), 5)

    def forward(self, images: Tensor) -> Tensor:
        known = torch.tanh(self.stem(images))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            known = torch.cat([known, torch.tanh(layer(norm(known)))], 1)
        return self.head(known.mean((2, 3)))


class Tied(nn.Module):
    """One tensor read by a convolution, a depthwise one, a grouped one, and flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.plain = nn.Conv2d(4, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.project = nn.Conv2d(4, 4, 1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.hidden = nn.Linear(64, 5)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.tanh(self.stem(images))
        y = self.plain(x) + self.project(torch.tanh(self.depthwise(x))) + self.grouped(x)
        return self.head(torch.tanh(y).mean((2, 3))) + self.hidden(x.flatten(1))


class Tokens(nn.Module):
    """Linear layers that are called on every position of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, stride=4)
        self.wide = nn.Linear(4, 6)
        self.narrow = nn.Linear(6, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = x + self.narrow(torch.relu(self.wide(x)))
        return self.head(torch.tanh(x).mean(1))


class Windows(nn.Module):
    """Some layers see whole images, others windows of them, next to each other as images are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inside = nn.Linear(4, 6)
        self.back = nn.Linear(6, 4)
        self.near = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.tanh(self.stem(images))
        windows = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        tokens = windows.flatten(2).transpose(1, 2)
        tokens = tokens + self.back(torch.tanh(self.inside(tokens)))
        maps = tokens.transpose(1, 2).reshape(windows.shape)
        y = torch.tanh(self.near(maps)).mean((2, 3)).view(len(images), -1, 4).mean(1)
        return self.head(y + x.mean((2, 3)))


class Twice(nn.Module):
    """A layer that is called twice, and so reads and writes the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.mix = nn.Conv2d(4, 4, 3, padding=1)
        self.next = nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(5, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.tanh(self.mix(torch.tanh(self.mix(torch.tanh(self.stem(images))))))
        return self.head(torch.tanh(self.next(x)).mean((2, 3)))


def dense(layers: int = 3) -> nn.Module:
    return randomise(DenseBlock(layers).double()).eval()


def networks() -> dict[str, nn.Module]:
    known = {style: small(style, act="tanh") for style in STYLES}
    windows = randomise(Windows().double()).eval()
    return {**known, "dense": dense(), "deeper dense": dense(4), "windows": windows}


def test_a_layer_of_a_dense_block_is_read_by_all_that_follow() -> None:
    groups = find_groups(dense(), data()[0][0]).prunable
    assert set(groups["stem"].consumers) == {"layers.0", "layers.1", "layers.2", "head"}
    assert set(groups["layers.0"].consumers) == {"layers.1", "layers.2", "head"}
    assert set(groups["layers.2"].consumers) == {"head"}


def losses(scene: Scene, gate: Tensor) -> Tensor:
    with torch.no_grad():
        model = gated(scene, gate)
        return torch.stack([scene.loss(model(image), label) for image, label in scene.images])


def difference(scene: Scene, channel: int, group: Group) -> Tensor:
    """Central difference of every image's loss as one channel's gate moves."""
    up, down = torch.ones(2, group.channels, dtype=torch.float64)
    up[channel] += STEP
    down[channel] -= STEP
    return (losses(scene, up) - losses(scene, down)) / (2 * STEP)


@pytest.mark.parametrize("name", networks())
def test_taylor_and_fisher_are_those_of_a_gate_on_all_consumers(name: str) -> None:
    model, batches = networks()[name], data(4, 3)
    groups = find_groups(model, batches[0][0]).prunable
    assert groups
    scores = scores_of(model, batches, ["taylor", "taylor_gate", "fisher", "group_fisher"])
    for root, group in groups.items():
        scene = Scene(model, group, singles(batches))
        moved = torch.stack([difference(scene, c, group) for c in range(group.channels)], 1)
        exact = torch.tensor(gate_effects(scene), dtype=torch.float64)
        assert close(moved, exact, 1e-4), root
        found = scores[root]
        for effects, tolerance in ((exact, 1e-9), (moved, 1e-4)):
            assert close(found["taylor"], effects.abs().mean(0), tolerance), root
            assert close(found["taylor_gate"], effects.mean(0).square(), 3 * tolerance), root
            assert close(found["fisher"], effects.square().mean(0) / 2, 3 * tolerance), root


@pytest.mark.parametrize("layers", [3, 4])
def test_metrics_equal_their_slow_twins_in_a_dense_block(layers: int) -> None:
    model, batches = dense(layers), data(3, 2)
    check_twins(model, batches, scores_of(model, batches))


def test_consumers_of_one_tensor_are_summed_before_the_absolute_value() -> None:
    """Two consumers whose effects cancel: the channel's removal changes nothing to first order."""
    model, batches = small("two_consumers", act="tanh"), data()
    model.second = nn.Conv2d(4, 5, 3, padding=1).double()
    model.second.weight.data.copy_(-model.first.weight.data)
    found = scores_of(model, batches)["stem"]
    parts = [
        "taylor",
        "taylor_gate",
        "fisher",
        "group_fisher",
        "gauss_newton",
        "second_taylor_gate",
    ]
    for metric in parts:
        assert (found[metric].abs() < 1e-12).all(), metric
    for metric in ("taylor_elementwise", "energy_gradient", "mean_activation", "wanda"):
        assert (found[metric] > 1e-6).all(), metric


@pytest.mark.parametrize("kind", [Tied, Tokens, Twice])
def test_metrics_equal_their_slow_twins_wherever_a_tensor_goes(kind: type[nn.Module]) -> None:
    model, batches = randomise(kind().double()).eval(), data(3, 2)
    scores = scores_of(model, batches)
    assert len(scores) >= 2
    check_twins(model, batches, scores)
