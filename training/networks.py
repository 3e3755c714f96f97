"""The families of the zoo: small convolutional networks for images from 8x8 to 64x64 pixels.

Every family reads the same `NetworkShape`. Larger images get more stages: each stage after the
first halves height and width and doubles the channels, down to maps of 4x4 or 8x8.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from training.blocks import (
    BasicBlock,
    BottleneckBlock,
    DenseLayer,
    Fire,
    Head,
    InvertedResidual,
    MapHead,
    PreActivationBlock,
    activation,
    unit,
)

Block = Callable[[int, int, int, str], nn.Module]
Ending = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class NetworkShape:
    """What every family needs to know to build a network.

    Attributes:
        in_channels: Channels of the images.
        classes: Number of outputs.
        image_size: Height and width of the images, in pixels.
        width: Channels of the first stage.
        depth: Blocks of every stage; for `lenet`, hidden linear layers.
        activation: One of `training.blocks.ACTIVATIONS`.
    """

    in_channels: int
    classes: int
    image_size: int
    width: int
    depth: int
    activation: str = "relu"

    @property
    def stages(self) -> int:
        """Number of stages: 2 for 8x8 images, 3 for 32x32, 4 for 64x64."""
        return max(2, round(math.log2(self.image_size)) - 2)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every stage."""
        return tuple(self.width * 2**stage for stage in range(self.stages))


class Pooled(nn.Module):
    """Stages of layers with max pooling between them; the base of the families without skips."""

    def __init__(
        self, shape: NetworkShape, layers: Callable[[int, int], list[nn.Module]], head: Ending
    ) -> None:
        """Fill every stage with `layers(inputs, outputs)`."""
        super().__init__()
        self.stages = nn.Sequential()
        inputs = shape.in_channels
        for stage, outputs in enumerate(shape.widths):
            pool = [nn.MaxPool2d(2)] if stage + 1 < shape.stages else []
            self.stages.append(nn.Sequential(*layers(inputs, outputs), *pool))
            inputs = outputs
        self.head = head(inputs, shape.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        logits: Tensor = self.head(self.stages(images))
        return logits


class Plain(Pooled):
    """A stack of 3x3 convolutions, `depth` a stage, like VGG."""

    def __init__(self, shape: NetworkShape, *, norm: bool = False) -> None:
        """Put BatchNorm behind every convolution if `norm`."""

        def layers(inputs: int, outputs: int) -> list[nn.Module]:
            sizes = [inputs] + [outputs] * (shape.depth - 1)
            return [unit(size, outputs, 3, shape.activation, norm=norm) for size in sizes]

        super().__init__(shape, layers, Head)


class NetworkInNetwork(Pooled):
    """A 3x3 convolution followed by `depth` 1x1 ones in every stage (arXiv 1312.4400)."""

    def __init__(self, shape: NetworkShape) -> None:
        """End in one map for each class."""

        def layers(inputs: int, outputs: int) -> list[nn.Module]:
            mixers = [unit(outputs, outputs, 1, shape.activation) for _ in range(shape.depth)]
            return [unit(inputs, outputs, 3, shape.activation), *mixers]

        super().__init__(shape, layers, MapHead)


class Squeeze(Pooled):
    """Fire modules, `depth` a stage, which concatenate 1x1 and 3x3 maps (arXiv 1602.07360)."""

    def __init__(self, shape: NetworkShape) -> None:
        """Begin the first stage with a 3x3 convolution and end in one map for each class."""

        def layers(inputs: int, outputs: int) -> list[nn.Module]:
            stem: list[nn.Module] = []
            if outputs == shape.width:
                stem = [unit(inputs, outputs, 3, shape.activation, norm=False)]
            sizes = [outputs if stem else inputs] + [outputs] * (shape.depth - 1)
            return [*stem, *(Fire(size, outputs, shape.activation) for size in sizes)]

        super().__init__(shape, layers, MapHead)


class Staged(nn.Module):
    """A stem and stages of `depth` blocks; the first block of each later stage has stride 2."""

    def __init__(self, shape: NetworkShape, block: Block) -> None:
        """Fill the stages with `block(inputs, outputs, stride, activation)`."""
        super().__init__()
        self.stem: nn.Module = unit(shape.in_channels, shape.width, 3, shape.activation)
        self.stages = nn.Sequential()
        inputs = shape.width
        for stage, outputs in enumerate(shape.widths):
            blocks = nn.Sequential()
            for number in range(shape.depth):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(block(inputs, outputs, stride, shape.activation))
                inputs = outputs
            self.stages.append(blocks)
        self.head = Head(inputs, shape.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        logits: Tensor = self.head(self.stages(self.stem(images)))
        return logits


class PreActivationResidual(Staged):
    """Residual network with BatchNorm and activation before each convolution (arXiv 1603.05027)."""

    def __init__(self, shape: NetworkShape) -> None:
        """Build it from `PreActivationBlock`, with a last BatchNorm before the head."""
        super().__init__(shape, PreActivationBlock)
        self.stem = nn.Conv2d(shape.in_channels, shape.width, 3, padding=1, bias=False)
        self.final = nn.Sequential(nn.BatchNorm2d(shape.widths[-1]), activation(shape.activation))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        logits: Tensor = self.head(self.final(self.stages(self.stem(images))))
        return logits


class Dense(nn.Module):
    """Every layer reads all earlier ones of its stage (DenseNet, arXiv 1608.06993)."""

    def __init__(self, shape: NetworkShape) -> None:
        """Build `shape.depth` layers a stage, each adding `shape.width` channels."""
        super().__init__()
        channels = 2 * shape.width
        self.stem = nn.Conv2d(shape.in_channels, channels, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        for stage in range(shape.stages):
            layers = nn.Sequential()
            for _ in range(shape.depth):
                layers.append(DenseLayer(channels, shape.width, shape.activation))
                channels += shape.width
            if stage + 1 < shape.stages:
                transition = OrderedDict(
                    norm=nn.BatchNorm2d(channels),
                    act=activation(shape.activation),
                    conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
                    pool=nn.AvgPool2d(2),
                )
                layers.append(nn.Sequential(transition))
                channels //= 2
            self.stages.append(layers)
        self.final = nn.Sequential(nn.BatchNorm2d(channels), activation(shape.activation))
        self.head = Head(channels, shape.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        logits: Tensor = self.head(self.final(self.stages(self.stem(images))))
        return logits


class LeNet(nn.Module):
    """Convolutions with pooling, flattened into a perceptron, like LeNet-5."""

    def __init__(self, shape: NetworkShape) -> None:
        """Build one convolution a stage and `shape.depth` hidden linear layers."""
        super().__init__()
        self.features = nn.Sequential()
        inputs, size = shape.in_channels, shape.image_size
        kernel = 5 if size >= 16 else 3
        for outputs in shape.widths:
            self.features.append(unit(inputs, outputs, kernel, shape.activation, norm=False))
            self.features.append(nn.MaxPool2d(2))
            inputs, size = outputs, size // 2
        self.classifier = nn.Sequential()
        inputs *= size * size
        for _ in range(shape.depth):
            self.classifier.append(nn.Linear(inputs, 4 * shape.width))
            self.classifier.append(activation(shape.activation))
            inputs = 4 * shape.width
        self.classifier.append(nn.Linear(inputs, shape.classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


FAMILIES: Mapping[str, Callable[[NetworkShape], nn.Module]] = {
    "plain": Plain,
    "plain_bn": partial(Plain, norm=True),
    "nin": NetworkInNetwork,
    "residual": partial(Staged, block=BasicBlock),
    "bottleneck": partial(Staged, block=BottleneckBlock),
    "preact": PreActivationResidual,
    "mobile": partial(Staged, block=InvertedResidual),
    "dense": Dense,
    "squeeze": Squeeze,
    "lenet": LeNet,
}
