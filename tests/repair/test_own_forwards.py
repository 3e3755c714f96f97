"""Layers with a forward of their own are refitted where they come to a plain layer."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.network.surgery import apply_cuts, cuts_of
from selector.network.tracing import find_groups
from selector.repair.correspondence import kept_after_cuts
from selector.repair.own_forwards import plain_reading
from selector.repair.reconstruction import Repair, reconstruct
from tests.networks import randomise


class SamePadding(nn.Conv2d):
    """Pads what it reads by itself, as TensorFlow's convolutions do: more at the end."""

    def forward(self, input: Tensor) -> Tensor:
        padded = functional.pad(input, (0, 1, 0, 1))
        return functional.conv2d(
            padded, self.weight, self.bias, self.stride, groups=self.groups, padding=0
        )


class Standardised(nn.Conv2d):
    """Convolves with other weights than its own."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(input, self.weight - self.weight.mean(), self.bias)


class Spelt(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input=input, weight=self.weight, bias=self.bias)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * functional.linear(input, self.weight, self.bias)


def with_padding_of_its_own(groups: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU()),
        *(SamePadding(8, 8, 2, stride=2, groups=groups), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Spelt(8, 4)),
    )


def in_plain_words(groups: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU()),
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 2, stride=2, groups=groups)),
        *(nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


def images() -> list[tuple[Tensor, Tensor]]:
    chance = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(16, 3, 9, 9, generator=chance, dtype=torch.float64),
            torch.randint(4, (16,), generator=chance),
        )
        for _ in range(3)
    ]


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("hooks", [False, True])
def test_repair_is_that_of_the_network_in_plain_words(groups: int, hooks: bool) -> None:
    own = randomise(with_padding_of_its_own(groups)).double().eval()
    plain = in_plain_words(groups).double().eval()
    for value, other in zip(plain.state_dict().values(), own.state_dict().values(), strict=True):
        value.copy_(other)
    batches, found, done = images(), [], []
    for model in (own, plain):
        group = find_groups(model, batches[0][0]).prunable["0"]
        pruned = copy.deepcopy(model)
        apply_cuts(pruned, cuts_of([(group, [0, 2])]))
        kept = kept_after_cuts(model, cuts_of([(group, [0, 2])]))
        repaired, report = reconstruct(model, pruned, batches, kept=kept, how=Repair(hooks=hooks))
        assert not report.skipped
        done.append([row.done for row in report.layers])
        found.append(list(repaired.state_dict().values()))
    assert done[0] == done[1]
    assert "refitted" in done[0] or groups == 8
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("layer", "shape"), [(Standardised(3, 4, 1), (2, 3, 5, 5)), (Scaled(3, 4), (2, 3))]
)
def test_what_does_more_than_its_weights_say_is_no_plain_layer(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    assert plain_reading(layer, torch.randn(shape)) is None


def test_a_plain_layer_reads_what_it_is_given() -> None:
    layer, inputs = nn.Conv2d(3, 4, 1), torch.randn(2, 3, 5, 5)
    found = plain_reading(layer, inputs)
    assert found is not None
    assert found[0] is layer
    assert found[1] is inputs
