"""Networks drawn at random from all layers that pruning knows, and from some that it refuses."""

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import override

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    *(nn.ReLU, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Hardswish),
    *(nn.Softplus, nn.ReLU6, nn.Mish, nn.Identity, lambda: nn.Dropout(0.3), lambda: nn.PReLU()),
)


class DrawnNetwork(nn.Module):
    """A few blocks one after the other, each drawn, then a head.

    Args:
        seed: Fixes the network and its weights.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        chance = random.Random(seed)
        self.inputs, self.size = chance.choice((1, 3)), chance.choice((6, 8))
        width = chance.choice((4, 6, 8, 12))
        self.stem = nn.Conv2d(self.inputs, width, 3, padding=1)
        blocks = []
        for _ in range(chance.randrange(1, 5)):
            block = chance.choice(BLOCKS)(width, chance)
            blocks.append(block)
            width = block.width
        self.blocks = nn.ModuleList(blocks)
        self.head = _head(width, chance)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images of shape (images, inputs, size, size)."""
        images = self.stem(images)
        for block in self.blocks:
            images = block(images)
        found: Tensor = self.head(images)
        return found


class Block(nn.Module):
    """A part of a network, from one width to another."""

    width: int
    """Channels of its output."""

    def __init__(self, before: int, chance: random.Random) -> None:
        super().__init__()


def _norm(width: int, chance: random.Random) -> nn.Module:
    kind = chance.choice(("batch", "batch", "batch", "none", "instance", "group", "plain batch"))
    if kind == "batch":
        return nn.BatchNorm2d(width)
    if kind == "plain batch":
        return nn.BatchNorm2d(width, affine=False)
    if kind == "instance":
        return nn.InstanceNorm2d(width, affine=chance.random() < 0.5)
    if kind == "group" and width % 2 == 0 and chance.random() < 0.3:
        return nn.GroupNorm(2, width)
    return nn.Identity()


def _act(width: int, chance: random.Random) -> nn.Module:
    if chance.random() < 0.1:
        return nn.PReLU(width)
    return chance.choice(ACTIVATIONS)()


def _unit(
    before: int, after: int, chance: random.Random, kernel: int = 3, groups: int = 1
) -> nn.Module:
    bias = chance.random() < 0.5
    layer = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=bias, groups=groups)
    return nn.Sequential(layer, _norm(after, chance), _act(after, chance))


def _width(chance: random.Random) -> int:
    return chance.choice((4, 6, 8, 12))


class Plain(Block):
    """One or two convolutions."""

    def __init__(self, before: int, chance: random.Random) -> None:
        super().__init__(before, chance)
        self.width = _width(chance)
        self.first = _unit(before, self.width, chance, chance.choice((1, 3)))
        self.again = _unit(self.width, self.width, chance) if chance.random() < 0.5 else None

    @override
    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.first(images)
        return found if self.again is None else self.again(found)


class Residual(Block):
    """A sum with the input, or with a projection of it."""

    def __init__(self, before: int, chance: random.Random) -> None:
        super().__init__(before, chance)
        project = chance.random() < 0.4
        self.width = _width(chance) if project else before
        inner = _width(chance)
        self.inside = nn.Sequential(
            _unit(before, inner, chance), nn.Conv2d(inner, self.width, 3, padding=1)
        )
        self.norm = _norm(self.width, chance)
        self.project = nn.Conv2d(before, self.width, 1) if project else nn.Identity()
        self.act, self.by_method = _act(self.width, chance), chance.random() < 0.5

    @override
    def forward(self, images: Tensor) -> Tensor:
        inside, shortcut = self.norm(self.inside(images)), self.project(images)
        found: Tensor = self.act(inside.add(shortcut) if self.by_method else inside + shortcut)
        return found


class Joined(Block):
    """Branches that are concatenated."""

    def __init__(self, before: int, chance: random.Random) -> None:
        super().__init__(before, chance)
        widths = [_width(chance) for _ in range(chance.randrange(1, 4))]
        self.branches = nn.ModuleList(
            _unit(before, w, chance, chance.choice((1, 3))) for w in widths
        )
        self.keep = chance.random() < 0.4
        self.width = sum(widths) + before * self.keep

    @override
    def forward(self, images: Tensor) -> Tensor:
        found = [branch(images) for branch in self.branches]
        return torch.cat([images, *found] if self.keep else found, 1)


class Separable(Block):
    """A depthwise convolution, and a pointwise one."""

    def __init__(self, before: int, chance: random.Random) -> None:
        super().__init__(before, chance)
        self.width = _width(chance)
        self.deep = _unit(before, before, chance, groups=before)
        self.point = _unit(before, self.width, chance, 1)

    @override
    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.point(self.deep(images))
        return found


class Grouped(Block):
    """A grouped convolution between two plain ones, at times with a shuffle."""

    def __init__(self, before: int, chance: random.Random) -> None:
        super().__init__(before, chance)
        self.width, self.groups = _width(chance), chance.choice((2, 4))
        self.into = _unit(before, 8, chance, 1)
        self.middle = _unit(8, 8, chance, groups=self.groups)
        self.out = _unit(8, self.width, chance, 1)
        self.shuffle = chance.random() < 0.2

    @override
    def forward(self, images: Tensor) -> Tensor:
        hidden = self.into(images)
        if self.shuffle:
            size = hidden.shape
            split = hidden.view(size[0], 2, size[1] // 2, *size[2:])
            hidden = split.transpose(1, 2).reshape(size)
        found: Tensor = self.out(self.middle(hidden))
        return found


class Gated(Block):
    """Channels that are weighed by what the whole image shows."""

    def __init__(self, before: int, chance: random.Random) -> None:
        super().__init__(before, chance)
        self.width = before
        self.down, self.up = nn.Conv2d(before, 4, 1), nn.Conv2d(4, before, 1)

    @override
    def forward(self, images: Tensor) -> Tensor:
        pooled = images.mean((2, 3), keepdim=True)
        gate: Tensor = self.up(self.down(pooled).relu()).sigmoid()
        return images * gate


class Resized(Block):
    """Pooling, strides and transposed convolutions."""

    def __init__(self, before: int, chance: random.Random) -> None:
        super().__init__(before, chance)
        self.width = _width(chance)
        kind = chance.choice(("max", "mean", "stride", "transposed", "bilinear"))
        first: nn.Module = {
            "max": nn.MaxPool2d(2, 2),
            "mean": nn.AvgPool2d(2, 2),
            "stride": nn.Conv2d(before, before, 3, 2, 1),
            "transposed": nn.ConvTranspose2d(before, before, 3, padding=1),
            "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
        }[kind]
        self.first, self.second = first, _unit(before, self.width, chance)

    @override
    def forward(self, images: Tensor) -> Tensor:
        small = images.shape[-1] < 4 and not isinstance(self.first, nn.Upsample)
        found: Tensor = self.second(images if small else self.first(images))
        return found


class Split(Block):
    """Two halves of the channels go different ways."""

    def __init__(self, before: int, chance: random.Random) -> None:
        super().__init__(before, chance)
        half = before // 2
        self.width, self.middle = before, half
        self.way, self.swap = _unit(half, half, chance), chance.random() < 0.5

    @override
    def forward(self, images: Tensor) -> Tensor:
        first, rest = images[:, : self.middle], images[:, self.middle :]
        parts = [self.way(first), rest]
        return torch.cat(parts[::-1] if self.swap else parts, 1)


class Twice(Block):
    """One convolution that is called twice."""

    def __init__(self, before: int, chance: random.Random) -> None:
        super().__init__(before, chance)
        self.width = before
        self.layer = nn.Conv2d(before, before, 3, padding=1)
        self.norm = _norm(before, chance)

    @override
    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.norm(self.layer(self.layer(images).relu()))
        return found


BLOCKS: tuple[Callable[[int, random.Random], Block], ...] = (
    *(Plain, Plain, Residual, Residual, Joined, Separable, Grouped, Gated, Resized, Split, Twice),
)


def _head(width: int, chance: random.Random) -> nn.Module:
    act = _act(8, chance) if chance.random() < 0.9 else nn.ReLU()
    if isinstance(act, nn.PReLU):
        act = nn.ReLU()
    kind = chance.choice(("pooled", "flat", "deep"))
    pool = nn.AdaptiveAvgPool2d(1 if kind == "pooled" else 2)
    inside = width * (1 if kind == "pooled" else 4)
    if kind != "deep":
        return nn.Sequential(pool, nn.Flatten(), nn.Linear(inside, 5))
    norm = nn.BatchNorm1d(8) if chance.random() < 0.5 else nn.Identity()
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(inside, 8), norm, act, nn.Linear(8, 5))


def drawn(seed: int) -> tuple[DrawnNetwork, Tensor]:
    """A network in evaluation mode with statistics of its own, and a few images for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DrawnNetwork(seed).double()
        images = torch.randn(4, model.inputs, model.size, model.size, dtype=torch.float64)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval(), images
