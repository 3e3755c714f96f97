"""How blocks are put together: the shape that every family takes, and two skeletons that most fill.

Larger images get more stages: each stage after the first halves height and width and doubles the
channels, down to maps of 4x4 or 8x8.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from training.zoo.blocks import Head, unit

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
        activation: One of `training.zoo.blocks.ACTIVATIONS`.
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
        self.head: nn.Module = Head(inputs, shape.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        logits: Tensor = self.head(self.stages(self.stem(images)))
        return logits
