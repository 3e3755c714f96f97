"""Blocks that put maps side by side."""

import torch
from torch import Tensor, nn

from selector.errors import SelectorError
from training.zoo.blocks import activation, unit


class DenseLayer(nn.Module):
    """BatchNorm, activation and a 3x3 convolution whose channels are appended to the input."""

    def __init__(self, inputs: int, growth: int, act: str) -> None:
        """Append `growth` channels to `inputs`."""
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.act = activation(act)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps with the new ones behind them."""
        return torch.cat([maps, self.conv(self.act(self.norm(maps)))], dim=1)


class Fire(nn.Module):
    """Squeeze to a quarter of the outputs, then 1x1 and 3x3 side by side, half of them each."""

    def __init__(self, inputs: int, outputs: int, act: str) -> None:
        """Build one fire module (arXiv 1602.07360)."""
        super().__init__()
        squeezed = max(2, outputs // 4)
        self.squeeze = unit(inputs, squeezed, 1, act, norm=False)
        self.expand1x1 = unit(squeezed, outputs // 2, 1, act, norm=False)
        self.expand3x3 = unit(squeezed, outputs - outputs // 2, 3, act, norm=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the 1x1 maps with the 3x3 maps behind them."""
        few = self.squeeze(maps)
        return torch.cat([self.expand1x1(few), self.expand3x3(few)], dim=1)


class Inception(nn.Module):
    """1x1, 3x3, two 3x3, and pooling, side by side, a quarter of the outputs each.

    As arXiv 1409.4842, with BatchNorm and two 3x3 convolutions for the 5x5 of arXiv 1502.03167.
    """

    def __init__(self, inputs: int, outputs: int, act: str) -> None:
        """Build one module; 1x1 convolutions lead to the larger ones.

        Raises:
            SelectorError: If there are too few outputs for four branches.
        """
        super().__init__()
        if outputs < 4:
            raise SelectorError(f"an Inception module of {outputs} channels has no four branches")
        quarter = outputs // 4
        inner, rest = max(2, quarter), outputs - 3 * quarter
        self.one = unit(inputs, quarter, 1, act)
        self.three = nn.Sequential(unit(inputs, inner, 1, act), unit(inner, rest, 3, act))
        self.five = nn.Sequential(
            unit(inputs, inner, 1, act), unit(inner, inner, 3, act), unit(inner, quarter, 3, act)
        )
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), unit(inputs, quarter, 1, act))

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps of the four branches, one behind the other."""
        branches = [self.one(maps), self.three(maps), self.five(maps), self.pooled(maps)]
        return torch.cat(branches, dim=1)
