"""The blocks and heads that the families of the zoo are made of."""

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from selector.errors import SelectorError

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
}


def activation(name: str) -> nn.Module:
    """Return a new activation module; never in place, so that what it read can be read again.

    Raises:
        SelectorError: If `name` is not one of `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise SelectorError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def unit(
    inputs: int,
    outputs: int,
    kernel: int,
    act: str | None,
    *,
    stride: int = 1,
    groups: int = 1,
    norm: bool = True,
) -> nn.Sequential:
    """Return convolution, BatchNorm if `norm`, activation unless `act` is None.

    Padding keeps the size of the maps, but for the stride. The convolution has a bias only where
    no BatchNorm follows.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=not norm
    )
    if norm:
        layers["norm"] = nn.BatchNorm2d(outputs)
    if act is not None:
        layers["act"] = activation(act)
    return nn.Sequential(layers)


class ResidualBlock(nn.Module):
    """A body whose output is added to its input, then the activation.

    Where stride or channels change, the input passes a 1x1 convolution and BatchNorm first.
    """

    def __init__(
        self, body: nn.Sequential, inputs: int, outputs: int, stride: int, act: str
    ) -> None:
        """Put the shortcut around `body`."""
        super().__init__()
        self.body = body
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = unit(inputs, outputs, 1, None, stride=stride)
        self.act = activation(act)

    def forward(self, maps: Tensor) -> Tensor:
        """Return act(body(maps) + shortcut(maps))."""
        kept = maps if self.shortcut is None else self.shortcut(maps)
        total: Tensor = self.act(self.body(maps) + kept)
        return total


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions around which the input is added."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: str) -> None:
        """Build the body of one block."""
        body = nn.Sequential(
            unit(inputs, outputs, 3, act, stride=stride), unit(outputs, outputs, 3, None)
        )
        super().__init__(body, inputs, outputs, stride, act)


class BottleneckBlock(ResidualBlock):
    """1x1 to a half of the channels, 3x3, 1x1 back; the input is added around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: str) -> None:
        """Build the body of one block."""
        inner = max(4, outputs // 2)
        body = nn.Sequential(
            unit(inputs, inner, 1, act),
            unit(inner, inner, 3, act, stride=stride),
            unit(inner, outputs, 1, None),
        )
        super().__init__(body, inputs, outputs, stride, act)


class PreActivationBlock(nn.Module):
    """BatchNorm and activation before each of two 3x3 convolutions; the bare input is added."""

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


class InvertedResidual(nn.Module):
    """1x1 to four times the channels, 3x3 depthwise, 1x1 back without activation."""

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


class Head(nn.Module):
    """Global average pooling, then one linear layer to the classes."""

    def __init__(self, channels: int, classes: int) -> None:
        """Read `channels` maps of any size."""
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        logits: Tensor = self.linear(torch.flatten(self.pool(maps), 1))
        return logits


class MapHead(nn.Module):
    """A 1x1 convolution to one map for each class, then global average pooling."""

    def __init__(self, channels: int, classes: int) -> None:
        """Read `channels` maps of any size."""
        super().__init__()
        self.conv = nn.Conv2d(channels, classes, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        return torch.flatten(self.pool(self.conv(maps)), 1)
