"""YOLO networks as `ultralytics` builds them, written out small: C2f, C3, SPPF and three heads."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvNormAct(nn.Sequential):
    """Convolution, BatchNorm and SiLU, as in YOLO."""

    def __init__(self, before: int, after: int, kernel: int = 1, stride: int = 1) -> None:
        convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(after), nn.SiLU())


class Bottleneck(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = ConvNormAct(width, width, 3), ConvNormAct(width, width, 3)

    def forward(self, maps: Tensor) -> Tensor:
        """Add what the convolutions find."""
        found: Tensor = maps + self.two(self.one(maps))
        return found


class C2f(nn.Module):
    """The block of YOLOv8: halves of a convolution, each bottleneck's output, concatenated."""

    def __init__(self, before: int, after: int, repeats: int) -> None:
        super().__init__()
        self.width = after // 2
        self.enter = ConvNormAct(before, 2 * self.width)
        self.leave = ConvNormAct((2 + repeats) * self.width, after)
        self.blocks = nn.ModuleList(Bottleneck(self.width) for _ in range(repeats))

    def forward(self, maps: Tensor) -> Tensor:
        """Chunk, extend by one block after the other, concatenate."""
        parts = list(self.enter(maps).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        found: Tensor = self.leave(torch.cat(parts, 1))
        return found


class C2fSplit(C2f):
    """The same by `split`, as YOLOv8's `forward_split` has it."""

    def forward(self, maps: Tensor) -> Tensor:
        """Split, extend, concatenate."""
        parts = list(self.enter(maps).split((self.width, self.width), 1))
        parts.extend(block(parts[-1]) for block in self.blocks)
        found: Tensor = self.leave(torch.cat(parts, 1))
        return found


class C3(nn.Module):
    """The CSP block of YOLOv5: two branches of the same input, concatenated."""

    def __init__(self, before: int, after: int, repeats: int) -> None:
        super().__init__()
        half = after // 2
        self.long, self.short = ConvNormAct(before, half), ConvNormAct(before, half)
        self.blocks = nn.Sequential(*(Bottleneck(half) for _ in range(repeats)))
        self.leave = ConvNormAct(2 * half, after)

    def forward(self, maps: Tensor) -> Tensor:
        """Concatenate the branches."""
        found: Tensor = self.leave(torch.cat((self.blocks(self.long(maps)), self.short(maps)), 1))
        return found


class SPPF(nn.Module):
    """Pooling thrice in a row, all four stages concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = ConvNormAct(width, width // 2), ConvNormAct(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool and concatenate."""
        parts = [self.enter(maps)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        found: Tensor = self.leave(torch.cat(parts, 1))
        return found


class Yolo(nn.Module):
    """Backbone, top-down and bottom-up neck, and a head at three scales, as in YOLOv8-n."""

    def __init__(self, block: type[nn.Module] = C2f, width: int = 16, classes: int = 20) -> None:
        super().__init__()
        a, b, c, d = 2 * width, 4 * width, 8 * width, 16 * width
        self.stem = nn.Sequential(ConvNormAct(3, width, 3, 2), ConvNormAct(width, a, 3, 2))
        self.stage1 = block(a, a, 1)
        self.stage2 = nn.Sequential(ConvNormAct(a, b, 3, 2), block(b, b, 2))
        self.stage3 = nn.Sequential(ConvNormAct(b, c, 3, 2), block(c, c, 2))
        self.stage4 = nn.Sequential(ConvNormAct(c, d, 3, 2), block(d, d, 1), SPPF(d))
        self.up3, self.up2 = block(d + c, c, 1), block(c + b, b, 1)
        self.down3, self.down4 = ConvNormAct(b, b, 3, 2), ConvNormAct(c, c, 3, 2)
        self.out3, self.out4 = block(b + c, c, 1), block(c + d, d, 1)
        self.boxes = nn.ModuleList(self._head(w, 64) for w in (b, c, d))
        self.scores = nn.ModuleList(self._head(w, classes) for w in (b, c, d))

    @staticmethod
    def _head(width: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(ConvNormAct(width, width, 3), nn.Conv2d(width, outputs, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return boxes and scores of each scale, (batch, 64 + classes, height, width)."""
        p2 = self.stage2(self.stage1(self.stem(images)))
        p3 = self.stage3(p2)
        p4 = self.stage4(p3)
        n3 = self.up3(torch.cat((functional.interpolate(p4, scale_factor=2.0), p3), 1))
        n2 = self.up2(torch.cat((functional.interpolate(n3, scale_factor=2.0), p2), 1))
        n3 = self.out3(torch.cat((self.down3(n2), n3), 1))
        n4 = self.out4(torch.cat((self.down4(n3), p4), 1))
        heads = zip((n2, n3, n4), self.boxes, self.scores, strict=True)
        return [torch.cat((boxes(maps), scores(maps)), 1) for maps, boxes, scores in heads]
