"""Blocks around a depthwise convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selector.errors import SelectorError
from training.zoo.blocks import activation, unit


class InvertedResidual(nn.Module):
    """1x1 to four times the channels, 3x3 depthwise, 1x1 back, linear (arXiv 1801.04381)."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: str) -> None:
        """Build one block; the input is added where its shape stays."""
        super().__init__()
        inner = 4 * inputs
        self.expand = unit(inputs, inner, 1, act)
        self.depthwise = unit(inner, inner, 3, act, stride=stride, groups=inner)
        self.project = unit(inner, outputs, 1, None)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        """Return the projected maps, plus the input where its shape stays."""
        changed: Tensor = self.project(self.depthwise(self.expand(maps)))
        return changed + maps if self.adds_input else changed


class SqueezeExcite(nn.Module):
    """Every map times a factor between 0 and 1 that all maps decide on (arXiv 1709.01507)."""

    def __init__(self, channels: int, squeezed: int, act: str) -> None:
        """Decide through `squeezed` channels."""
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = activation(act)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, maps: Tensor) -> Tensor:
        """Return the weighted maps."""
        factors: Tensor = self.gate(self.expand(self.act(self.reduce(self.pool(maps)))))
        return maps * factors


class ExcitedResidual(InvertedResidual):
    """Inverted residual with squeeze-and-excitation, as in EfficientNet (arXiv 1905.11946)."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: str) -> None:
        """Build one block; it squeezes to a quarter of the inputs."""
        super().__init__(inputs, outputs, stride, act)
        self.excite = SqueezeExcite(4 * inputs, max(4, inputs // 4), act)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the projected maps, plus the input where its shape stays."""
        changed: Tensor = self.project(self.excite(self.depthwise(self.expand(maps))))
        return changed + maps if self.adds_input else changed


class ShuffleBlock(nn.Module):
    """Half of the maps pass, half are changed, then they take turns (arXiv 1807.11164).

    Where stride or channels change, all maps go through both branches.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, act: str) -> None:
        """Build one block.

        Raises:
            SelectorError: If `outputs` is odd: it has no two halves.
        """
        super().__init__()
        if outputs % 2:
            raise SelectorError(f"a shuffled block of {outputs} channels has no two halves")
        half = outputs // 2
        self.other: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.other = nn.Sequential(
                unit(inputs, inputs, 3, None, stride=stride, groups=inputs),
                unit(inputs, half, 1, act),
            )
        self.branch = nn.Sequential(
            unit(inputs if self.other is not None else half, half, 1, act),
            unit(half, half, 3, None, stride=stride, groups=half),
            unit(half, half, 1, act),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps of both halves, by turns."""
        if self.other is None:
            kept, taken = maps.chunk(2, dim=1)
        else:
            kept, taken = self.other(maps), maps
        return F.channel_shuffle(torch.cat([kept, self.branch(taken)], dim=1), 2)


class MapNorm(nn.Module):
    """LayerNorm over the channels of every pixel."""

    def __init__(self, channels: int) -> None:
        """Normalise `channels` maps."""
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the normalised maps, of the same shape."""
        pixels: Tensor = self.norm(maps.permute(0, 2, 3, 1))
        return pixels.permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """7x7 depthwise, LayerNorm, 1x1 to four times the channels and back (arXiv 2201.03545).

    Where the shape changes, LayerNorm and a convolution carry the input over first. There is no
    scale for each layer: these networks are not deep enough to need one.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, act: str) -> None:
        """Build one block."""
        super().__init__()
        self.carry: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, stride, stride)
            self.carry = nn.Sequential(MapNorm(inputs), convolution)
        self.depthwise = nn.Conv2d(outputs, outputs, 7, padding=3, groups=outputs)
        self.norm = MapNorm(outputs)
        self.expand = nn.Conv2d(outputs, 4 * outputs, 1)
        self.act = activation(act)
        self.project = nn.Conv2d(4 * outputs, outputs, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps changed by the block."""
        kept = maps if self.carry is None else self.carry(maps)
        changed: Tensor = self.project(self.act(self.expand(self.norm(self.depthwise(kept)))))
        return changed + kept
