"""What every family of the zoo is made of: activations, one convolution, heads."""

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
