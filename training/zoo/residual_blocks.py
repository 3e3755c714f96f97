"""Blocks whose output is added to their input."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from training.zoo.blocks import activation, unit

Shortcut = Callable[[int, int, int], nn.Module]


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return a 1x1 convolution with BatchNorm: option B of arXiv 1512.03385."""
    return unit(inputs, outputs, 1, None, stride=stride)


class PaddedShortcut(nn.Module):
    """Every `stride`-th pixel, and zeros for new channels: option A of arXiv 1512.03385.

    It has no weights. Zeros are appended on both sides, half of them each.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Bring `inputs` maps to `outputs` of them."""
        super().__init__()
        before = (outputs - inputs) // 2
        self.padding = (0, 0, 0, 0, before, outputs - inputs - before)
        self.stride = stride

    def forward(self, maps: Tensor) -> Tensor:
        """Return the smaller maps between maps of zeros."""
        return F.pad(maps[:, :, :: self.stride, :: self.stride], self.padding)


class ResidualBlock(nn.Module):
    """A body whose output is added to its input, then the activation.

    Where stride or channels change, the input passes a shortcut first.
    """

    def __init__(
        self,
        body: nn.Sequential,
        inputs: int,
        outputs: int,
        stride: int,
        act: str,
        shortcut: Shortcut = projection,
    ) -> None:
        """Put the shortcut, made by `shortcut(inputs, outputs, stride)`, around `body`."""
        super().__init__()
        self.body = body
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = shortcut(inputs, outputs, stride)
        self.act = activation(act)

    def forward(self, maps: Tensor) -> Tensor:
        """Return act(body(maps) + shortcut(maps))."""
        kept = maps if self.shortcut is None else self.shortcut(maps)
        total: Tensor = self.act(self.body(maps) + kept)
        return total


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions around which the input is added (arXiv 1512.03385)."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, act: str, shortcut: Shortcut = projection
    ) -> None:
        """Build the body of one block."""
        body = nn.Sequential(
            unit(inputs, outputs, 3, act, stride=stride), unit(outputs, outputs, 3, None)
        )
        super().__init__(body, inputs, outputs, stride, act, shortcut)


class BottleneckBlock(ResidualBlock):
    """1x1 to half the channels, 3x3, 1x1 back; the input is added to that (arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: str) -> None:
        """Build the body of one block."""
        inner = max(4, outputs // 2)
        body = nn.Sequential(
            unit(inputs, inner, 1, act),
            unit(inner, inner, 3, act, stride=stride),
            unit(inner, outputs, 1, None),
        )
        super().__init__(body, inputs, outputs, stride, act)


class GroupedBlock(ResidualBlock):
    """1x1, grouped 3x3 and 1x1, all equally wide, as in RegNetX (arXiv 2003.13678).

    A removal takes the same offset from every group of the 3x3 convolution, so `group_width`
    channels can go from inside the block.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, act: str, *, group_width: int
    ) -> None:
        """Build the body of one block, with `group_width` channels in each group."""
        groups = max(1, outputs // group_width)
        inner = groups * group_width
        body = nn.Sequential(
            unit(inputs, inner, 1, act),
            unit(inner, inner, 3, act, stride=stride, groups=groups),
            unit(inner, outputs, 1, None),
        )
        super().__init__(body, inputs, outputs, stride, act)


class PreActivationBlock(nn.Module):
    """BatchNorm and activation before each of two 3x3 convolutions (arXiv 1603.05027)."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: str) -> None:
        """Build one block; a 1x1 convolution carries the input where its shape changes."""
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.act1 = activation(act)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.act2 = activation(act)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps changed by the block."""
        ready = self.act1(self.norm1(maps))
        kept = maps if self.shortcut is None else self.shortcut(ready)
        changed: Tensor = self.conv2(self.act2(self.norm2(self.conv1(ready))))
        return changed + kept
