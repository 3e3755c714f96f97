"""The families of the zoo: small convolutional networks for images from 8x8 to 64x64 pixels."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from training.zoo.blocks import Head, MapHead, activation, unit
from training.zoo.joining_blocks import DenseLayer, Fire, Inception
from training.zoo.residual_blocks import (
    BasicBlock,
    BottleneckBlock,
    GroupedBlock,
    PaddedShortcut,
    PreActivationBlock,
)
from training.zoo.separable_blocks import (
    ConvNextBlock,
    ExcitedResidual,
    InvertedResidual,
    MapNorm,
    ShuffleBlock,
)
from training.zoo.skeletons import NetworkShape as NetworkShape
from training.zoo.skeletons import Pooled, Staged


class Plain(Pooled):
    """A stack of 3x3 convolutions, `depth` a stage, like VGG (arXiv 1409.1556)."""

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


class InceptionNetwork(Pooled):
    """Inception modules, `depth` a stage (arXiv 1409.4842)."""

    def __init__(self, shape: NetworkShape) -> None:
        """Begin the first stage with a 3x3 convolution."""

        def layers(inputs: int, outputs: int) -> list[nn.Module]:
            stem: list[nn.Module] = []
            if outputs == shape.width:
                stem = [unit(inputs, outputs, 3, shape.activation)]
            sizes = [outputs if stem else inputs] + [outputs] * (shape.depth - 1)
            return [*stem, *(Inception(size, outputs, shape.activation) for size in sizes)]

        super().__init__(shape, layers, Head)


class RegNet(Staged):
    """Residual network of grouped convolutions, like RegNetX (arXiv 2003.13678)."""

    def __init__(self, shape: NetworkShape) -> None:
        """Make groups half as wide as the first stage, in all stages."""
        super().__init__(shape, partial(GroupedBlock, group_width=max(2, shape.width // 2)))


class ConvNext(Staged):
    """Depthwise 7x7 and inverted bottlenecks under LayerNorm, like ConvNeXt (arXiv 2201.03545)."""

    def __init__(self, shape: NetworkShape) -> None:
        """Begin with a bare 3x3 convolution, and end with LayerNorm before the head."""
        super().__init__(shape, ConvNextBlock)
        stem = nn.Conv2d(shape.in_channels, shape.width, 3, padding=1)
        self.stem = nn.Sequential(stem, MapNorm(shape.width))
        self.head: nn.Module = nn.Sequential(
            MapNorm(shape.widths[-1]), Head(shape.widths[-1], shape.classes)
        )


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
    """Convolutions with pooling, flattened into a perceptron, like LeNet-5.

    Source:
        LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """

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
    "option_a": partial(Staged, block=partial(BasicBlock, shortcut=PaddedShortcut)),
    "inception": InceptionNetwork,
    "efficient": partial(Staged, block=ExcitedResidual),
    "regnet": RegNet,
    "shuffle": partial(Staged, block=ShuffleBlock),
    "convnext": ConvNext,
}
"""The families by name; that of the paper which each is like is in its class or its block."""
