"""torchvision's attention in shifted windows (Swin), for inputs and heads of any width.

torchvision's own takes the width of its inputs for that of all heads, and reads the weights of its
layers without calling them. A cut gives the module this forward pass; its class and tensors stay.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_KINDS = {
    "torchvision.models.swin_transformer": ("ShiftedWindowAttention", "ShiftedWindowAttentionV2"),
    "torchvision.models.video.swin_transformer": ("ShiftedWindowAttention3d",),
}
"""Module -> its classes."""


def is_window_attention(module: nn.Module) -> bool:
    """Whether this is one of torchvision's modules, with a forward pass of torchvision's."""
    kind = type(module)
    home = kind.__module__
    return kind.__name__ in _KINDS.get(home, ()) and kind.forward.__module__ == home


def window_attention(self: Any, maps: Tensor) -> Tensor:
    """What torchvision's module computes, with heads as wide as their weights.

    Args:
        self: The module.
        maps: Shape (images, rows, columns, width), of videos (images, frames, rows, columns,
            width).

    Returns:
        Outputs of that shape.
    """
    size = tuple(maps.shape[1:-1])
    windows = _Windows.of(size, self.window_size, self.shift_size)
    tokens = windows.taken(maps)
    packed = self.qkv(tokens)
    packed = packed.view(*packed.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
    queries, keys, values = packed.unbind(0)
    logit_scale = getattr(self, "logit_scale", None)
    if logit_scale is None:
        scores = queries * queries.shape[-1] ** -0.5 @ keys.transpose(-2, -1)
    else:
        if self.qkv.bias is not None:
            # The second version has no bias of keys, whatever the layer keeps there.
            own = self.qkv.bias.view(3, self.num_heads, 1, -1)[1]
            keys = keys - own
        cosines = functional.normalize(queries, dim=-1) @ functional.normalize(
            keys, dim=-1
        ).transpose(-2, -1)
        scores = cosines * torch.clamp(logit_scale, max=math.log(100.0)).exp()
    # Of videos, windows are no larger than what there is, and the bias is that of their size.
    bias_of = (list(windows.window),) if len(size) == 3 else ()
    scores = scores + self.get_relative_position_bias(*bias_of)
    if any(windows.shift):
        apart = windows.apart(maps)
        scores = scores.view(len(maps), len(apart), *scores.shape[1:])
        scores = (scores + apart.unsqueeze(1)).flatten(0, 1)
    attention = functional.dropout(scores.softmax(-1), self.attention_dropout, self.training)
    read = (attention @ values).transpose(1, 2).flatten(2)
    found = functional.dropout(self.proj(read), self.dropout, self.training)
    return windows.put_back(found, len(maps))


class _Windows:
    """How maps of one size are taken apart into windows, and put back."""

    def __init__(self, size: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> None:
        self.size, self.window, self.shift = tuple(size), tuple(window), tuple(shift)
        self._padded = tuple(n + -n % w for n, w in zip(size, window, strict=True))
        self._counts = tuple(n // w for n, w in zip(self._padded, window, strict=True))

    @classmethod
    def of(cls, size: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> "_Windows":
        """Windows as torchvision's modules take them: where one covers all, nothing is shifted."""
        if len(size) == 3:
            window = [min(n, w) for n, w in zip(size, window, strict=True)]
        unshifted = cls(size, window, [0] * len(size))
        steps = zip(shift, unshifted._counts, strict=True)
        return cls(size, window, [step if count > 1 else 0 for step, count in steps])

    def taken(self, maps: Tensor) -> Tensor:
        """The positions of every window, shape (images and windows, positions, width)."""
        amounts = [p - n for n, p in zip(self.size, self._padded, strict=True)]
        padded = functional.pad(maps, (0, 0, *(n for a in reversed(amounts) for n in (0, a))))
        if any(self.shift):
            padded = torch.roll(padded, [-step for step in self.shift], self._dimensions)
        return self._tiles(padded).flatten(0, len(self.size)).flatten(1, -2)

    def put_back(self, tokens: Tensor, images: int) -> Tensor:
        """Maps from the positions of every window."""
        count = len(self.size)
        tiles = tokens.reshape(images, *self._counts, *self.window, -1)
        order = [d for i in range(1, count + 1) for d in (i, i + count)]
        maps = tiles.permute(0, *order, 2 * count + 1).reshape(images, *self._padded, -1)
        if any(self.shift):
            maps = torch.roll(maps, self.shift, self._dimensions)
        for dimension, size in zip(self._dimensions, self.size, strict=True):
            maps = maps.narrow(dimension, 0, size)
        return maps.contiguous()

    def apart(self, like: Tensor) -> Tensor:
        """What keeps parts of a shifted window apart that are no neighbours in the image.

        Returns:
            Shape (windows, positions, positions): -100 for two positions of different parts.
        """
        part = like.new_zeros(1, *self._padded, 1)
        bounds = [
            (slice(0, -w), slice(-w, -s if s else None), slice(-s, None) if s else slice(0, 0))
            for w, s in zip(self.window, self.shift, strict=True)
        ]
        for number, place in enumerate(itertools.product(*bounds)):
            part[(slice(None), *place)] = number
        tiles = self._tiles(part).reshape(-1, math.prod(self.window))
        differ = tiles.unsqueeze(1) != tiles.unsqueeze(2)
        return like.new_zeros(differ.shape).masked_fill(differ, -100.0)

    @property
    def _dimensions(self) -> list[int]:
        return list(range(1, len(self.size) + 1))

    def _tiles(self, maps: Tensor) -> Tensor:
        """Shape (images, windows along each dimension, positions along each, width)."""
        sizes = [n for pair in zip(self._counts, self.window, strict=True) for n in pair]
        tiles = maps.reshape(len(maps), *sizes, maps.shape[-1])
        last = tiles.ndim - 1
        return tiles.permute(0, *range(1, last, 2), *range(2, last, 2), last)
