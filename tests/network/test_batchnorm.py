"""Recalibrated statistics are those of all the images, however they come in batches."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from selector.network.batchnorm import recalibrate_batchnorm
from tests.networks import data, randomise, state_of


class Deep(nn.Module):
    """BatchNorm of every dimension, one after the other, one of them called twice."""

    def __init__(self, momentum: float | None = 0.1, *, tracked: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.first = nn.BatchNorm2d(4, momentum=momentum)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.twice = nn.BatchNorm2d(4, momentum=momentum)
        self.line = nn.BatchNorm1d(4, momentum=momentum)
        self.cube = nn.BatchNorm3d(2, momentum=momentum)
        self.untracked = nn.BatchNorm1d(8, track_running_stats=tracked, momentum=momentum)
        self.flat = nn.BatchNorm1d(5, momentum=momentum)
        self.mix, self.head = nn.Linear(4 * 64, 8), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.first(self.stem(images)))
        x = torch.relu(self.twice(self.again(x)))
        x = torch.relu(self.twice(self.again(x)))
        x = self.line(x.flatten(2)).view_as(x)
        x = self.cube(x.view(len(x), 2, 2, 8, 8)).flatten(1)
        return self.flat(self.head(torch.tanh(self.untracked(self.mix(x)))))


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: b for name, b in model.named_buffers() if "running" in name}


def recalibrated(batches: list[tuple[Tensor, Tensor]], **options: object) -> dict[str, Tensor]:
    model = randomise(Deep(**options).double()).eval()  # type: ignore[arg-type]
    recalibrate_batchnorm(model, batches)
    return statistics(model)


def split(sizes: list[int], images: Tensor) -> list[tuple[Tensor, Tensor]]:
    labels = torch.zeros(len(images), dtype=torch.int64)
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


IMAGES = data(65, 65)[0][0]


@pytest.mark.parametrize("momentum", [None, 0.1, 0.9])
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("sizes", [[32, 32, 1], [1] * 65, [64, 1], [20, 45], [7] * 9 + [2]])
def test_batches_change_nothing(sizes: list[int], momentum: float | None, tracked: bool) -> None:
    whole = recalibrated(split([65], IMAGES), momentum=momentum, tracked=tracked)
    parts = recalibrated(split(sizes, IMAGES), momentum=momentum, tracked=tracked)
    assert whole.keys() == parts.keys()
    for name, expected in whole.items():
        assert torch.allclose(parts[name], expected, rtol=1e-9), name


@settings(deadline=None, max_examples=15)
@given(draw=st.data())
def test_batches_change_nothing_when_memory_is_short(draw: st.DataObject) -> None:
    cuts = draw.draw(st.lists(st.integers(1, 64), unique=True, max_size=8).map(sorted))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, 65], strict=True)]
    found = []
    for some in ([65], sizes):
        model = randomise(Deep().double()).eval()
        recalibrate_batchnorm(model, split(some, IMAGES), memory_bytes=1)
        found.append(statistics(model))
    for name, expected in found[0].items():
        assert torch.allclose(found[1][name], expected, rtol=1e-9), name


def test_statistics_are_those_of_one_training_batch() -> None:
    """The slow twin: PyTorch's own, from a single batch of all images."""
    model = randomise(Deep(momentum=None).double())
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    with torch.no_grad():
        twin.train()(IMAGES)
    recalibrate_batchnorm(model, split([32, 33], IMAGES))
    for name, expected in statistics(twin).items():
        if not name.startswith("twice"):
            assert torch.allclose(statistics(model)[name], expected, rtol=1e-9), name


def test_a_layer_called_twice_pools_the_values_of_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images: Tensor) -> Tensor:
            return self.norm(2 * images + 1).sum() + self.norm(images[:, :, :2]).sum()

    model = Twice().double()
    recalibrate_batchnorm(model, split([3, 62], IMAGES))
    parts = [2 * IMAGES + 1, IMAGES[:, :, :2]]
    values = torch.cat([x.transpose(0, 1).flatten(1) for x in parts], 1)
    assert torch.allclose(model.norm.running_mean, values.mean(1))
    assert torch.allclose(model.norm.running_var, values.var(1))


def test_a_single_row_has_no_variance_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double().eval()
    before = state_of(model)
    one = [(torch.ones(1, 3, dtype=torch.float64), torch.zeros(1))]
    assert recalibrate_batchnorm(model, one) == 0
    assert state_of(model) == before


def test_layers_that_do_not_run_keep_their_statistics() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.aside = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, images: Tensor) -> Tensor:
            return self.norm(self.aside(images) if self.training else images)

    model = randomise(Aside().double()).eval()
    kept = copy.deepcopy(model.aside.state_dict())
    assert recalibrate_batchnorm(model, data()) == 1
    assert all(torch.equal(model.aside.state_dict()[name], t) for name, t in kept.items())


class Tabled(nn.Module):
    """A second input that all images share, with as many rows as a batch, by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, images: Tensor, table: Tensor) -> Tensor:
        return self.head(self.norm(images).mean((2, 3))) @ table


class FixedSize(nn.Module):
    """A network that takes batches of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(images.view(4, 3, 8, 8))


def test_what_cannot_be_put_together_is_pooled_by_count() -> None:
    table = torch.randn(4, 4, dtype=torch.float64)
    images = IMAGES[:12]
    tabled = [((x, table), y) for x, y in split([4, 4, 4], images)]
    mixed = [(IMAGES[:4], 0), (IMAGES[4:12, :, :4], 0)]
    for model, batches, values in (
        (Tabled(), tabled, images.transpose(0, 1).flatten(1)),
        (FixedSize(), split([4, 4, 4], images), images.transpose(0, 1).flatten(1)),
        (
            nn.Sequential(nn.BatchNorm2d(3)),
            mixed,
            torch.cat([x.transpose(0, 1).flatten(1) for x, _ in mixed], 1),
        ),
    ):
        norm = next(m for m in model.double().modules() if isinstance(m, nn.BatchNorm2d))
        recalibrate_batchnorm(model, batches)  # type: ignore[arg-type]
        assert torch.allclose(norm.running_mean, values.mean(1))
        assert torch.allclose(norm.running_var, values.var(1))
