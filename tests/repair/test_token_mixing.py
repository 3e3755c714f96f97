"""Layers over positions: where pruning takes positions from what they read, they keep weights."""

import torch
from torch import Tensor, nn

import selector
from tests.networks import data


class Mixer(nn.Module):
    """A linear layer over the positions of a map, between two over its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 12, 2, 2)
        self.over_positions = nn.Linear(16, 16)
        self.leave = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.enter(images).flatten(2)  # (images, channels, positions)
        mixed = tokens + self.over_positions(tokens).relu()
        return self.leave(mixed.mean(2))


def test_a_layer_over_positions_is_left_and_named() -> None:
    torch.manual_seed(0)
    model, batches = Mixer().double().eval(), data(64, 32, classes=5)
    result = selector.prune(model, batches, criterion="l1", ratio=0.5, rounds=1, repair=True)
    assert result.model.enter.out_channels == 6
    layers = {layer.layer: layer for layer in result.report.repair.layers}
    assert layers["over_positions"].done == "skipped"
    assert "positions that it reads" in layers["over_positions"].note
    assert torch.equal(result.model.over_positions.weight, model.over_positions.weight)
    assert layers["leave"].done == "refitted"
