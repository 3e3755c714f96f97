"""The classes of trained networks that we did not train, as their weights name the layers."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FoundingLeNet(nn.Module):
    """LeNet-5 of arXiv 2004.03376: no activation behind the convolutions."""

    def __init__(self) -> None:
        """Build it for 32x32 images; Caffe's pooling rounds sizes up."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 20, 5)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool2 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.ip1 = nn.Linear(1250, 500)
        self.relu = nn.ReLU()
        self.ip2 = nn.Linear(500, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, 10)."""
        maps = self.pool2(self.conv2(self.pool1(self.conv1(images))))
        logits: Tensor = self.ip2(self.relu(self.ip1(torch.flatten(maps, 1))))
        return logits


class FoundingCifar10(nn.Module):
    """Caffe's CIFAR-10 "quick" network, as in arXiv 2004.03376."""

    def __init__(self) -> None:
        """Build it for 32x32 images; Caffe's pooling rounds sizes up."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 5, padding=2)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.AvgPool2d(3, 2, ceil_mode=True)
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        self.relu3 = nn.ReLU()
        self.pool3 = nn.AvgPool2d(3, 2, ceil_mode=True)
        self.ip1 = nn.Linear(1024, 64)
        self.ip2 = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, 10)."""
        maps = self.relu1(self.pool1(self.conv1(images)))
        maps = self.pool2(self.relu2(self.conv2(maps)))
        maps = self.pool3(self.relu3(self.conv3(maps)))
        logits: Tensor = self.ip2(self.ip1(torch.flatten(maps, 1)))
        return logits


class FoundingBlock(nn.Module):
    """Residual block whose convolutions have biases; a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build one block."""
        super().__init__()
        self.conv0 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.conv0_bn = nn.BatchNorm2d(outputs)
        self.relu0 = nn.ReLU()
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv1_bn = nn.BatchNorm2d(outputs)
        self.projects = stride != 1
        if self.projects:
            self.proj = nn.Conv2d(inputs, outputs, 1, stride)
            self.proj_bn = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps of the block, after the addition and ReLU."""
        changed = self.conv1_bn(self.conv1(self.relu0(self.conv0_bn(self.conv0(maps)))))
        kept = self.proj_bn(self.proj(maps)) if self.projects else maps
        total: Tensor = self.relu1(changed + kept)
        return total


class FoundingResNet(nn.Module):
    """ResNet-20 of arXiv 2004.03376."""

    def __init__(self) -> None:
        """Build three groups of three blocks, 16, 32 and 64 channels wide."""
        super().__init__()
        self.first_conv = nn.Conv2d(3, 16, 3, padding=1)
        self.first_conv_bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        inputs = 16
        for group, outputs in enumerate((16, 32, 64)):
            for block in range(3):
                stride = 2 if group > 0 and block == 0 else 1
                self.add_module(
                    f"group{group}_block{block}", FoundingBlock(inputs, outputs, stride)
                )
                inputs = outputs
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, 10)."""
        maps = self.relu(self.first_conv_bn(self.first_conv(images)))
        for group in range(3):
            for block in range(3):
                maps = self.get_submodule(f"group{group}_block{block}")(maps)
        logits: Tensor = self.fc(torch.flatten(self.pool(maps), 1))
        return logits


class CentredShortcut(nn.Module):
    """Option A of arXiv 1512.03385: every second pixel, and zeros for the channels that are new.

    The channels that were there land in the middle: a quarter of the outputs are zeros before
    them and a quarter behind.
    """

    def __init__(self, outputs: int) -> None:
        """Pad to `outputs` channels, twice as many as arrive."""
        super().__init__()
        self.pad = outputs // 4

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps at half the height and width, between zero channels."""
        return F.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class CifarBlock(nn.Module):
    """Basic residual block without biases; `carry` brings its input to the shape of the output."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build everything but the shortcut."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()

    def carry(self, maps: Tensor) -> Tensor:
        """Return the input as it is added to the output of the convolutions."""
        return maps

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps of the block, after the addition and ReLU."""
        changed = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(maps)))))
        total: Tensor = self.relu2(changed + self.carry(maps))
        return total


class PaddedBlock(CifarBlock):
    """Block with an option A shortcut where its shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build one block."""
        super().__init__(inputs, outputs, stride)
        self.shortcut = nn.Identity() if stride == 1 else CentredShortcut(outputs)

    def carry(self, maps: Tensor) -> Tensor:
        """Return the input, padded where the shape changes."""
        return cast(Tensor, self.shortcut(maps))


class ProjectedBlock(CifarBlock):
    """Block with a 1x1 convolution and BatchNorm as shortcut where its shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build one block."""
        super().__init__(inputs, outputs, stride)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def carry(self, maps: Tensor) -> Tensor:
        """Return the input, projected where the shape changes."""
        return cast(Tensor, self.downsample(maps))


class CifarResNet(nn.Module):
    """The ResNet for CIFAR of arXiv 1512.03385: three stages, 16, 32 and 64 channels wide."""

    head_name = ""

    def __init__(self, block: type[CifarBlock], blocks: int) -> None:
        """Build `blocks` blocks in every stage."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(block, 16, 16, 1, blocks)
        self.layer2 = _stage(block, 16, 32, 2, blocks)
        self.layer3 = _stage(block, 32, 64, 2, blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.add_module(self.head_name, nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, 10)."""
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        features = torch.flatten(self.pool(maps), 1)
        return cast(Tensor, self.get_submodule(self.head_name)(features))


class HeResNet(CifarResNet):
    """With option A shortcuts, which have no parameters."""

    head_name = "linear"

    def __init__(self, depth: int) -> None:
        """Build the network of `depth` layers: 20, 32 or 44."""
        super().__init__(PaddedBlock, (depth - 2) // 6)


class CyResNet(CifarResNet):
    """With projected shortcuts, 20 layers."""

    head_name = "fc"

    def __init__(self) -> None:
        """Build the network of 20 layers."""
        super().__init__(ProjectedBlock, 3)


def _stage(
    block: type[CifarBlock], inputs: int, outputs: int, stride: int, blocks: int
) -> nn.Sequential:
    rest = (block(outputs, outputs, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(inputs, outputs, stride), *rest)
