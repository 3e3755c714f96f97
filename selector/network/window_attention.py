"""torchvision's attention in shifted windows (Swin), for inputs and heads of any width.

torchvision's own takes the width of its inputs for that of all heads, and reads the weights of its
layers without calling them. A cut gives the module this forward pass; its class and tensors stay.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_MODULE = "torchvision.models.swin_transformer"
_NAMES = ("ShiftedWindowAttention", "ShiftedWindowAttentionV2")


def is_window_attention(module: nn.Module) -> bool:
    """Whether this is one of torchvision's modules, with a forward pass of torchvision's."""
    kind = type(module)
    return (
        kind.__name__ in _NAMES
        and kind.__module__ == _MODULE
        and getattr(kind.forward, "__module__", None) == _MODULE
    )


def window_attention(self: Any, maps: Tensor) -> Tensor:
    """What torchvision's module computes, with heads as wide as their weights.

    Args:
        self: The module.
        maps: Shape (images, rows, columns, width).

    Returns:
        Outputs of that shape.
    """
    images, height, width, _ = maps.shape
    rows, columns = self.window_size
    padded = functional.pad(maps, (0, 0, 0, -width % columns, 0, -height % rows))
    high, wide = padded.shape[1:3]
    # Where one window covers all there is nothing to shift.
    shift = [
        0 if window >= size else step
        for step, window, size in zip(self.shift_size, (rows, columns), (high, wide), strict=True)
    ]
    shifted = any(shift)
    if shifted:
        padded = torch.roll(padded, (-shift[0], -shift[1]), (1, 2))
    tiles = padded.view(images, high // rows, rows, wide // columns, columns, -1)
    tokens = tiles.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, maps.shape[-1])
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
    scores = scores + self.get_relative_position_bias()
    if shifted:
        apart = _apart(maps, (high, wide), (rows, columns), shift)
        scores = scores.view(images, len(apart), *scores.shape[1:])
        scores = (scores + apart.unsqueeze(1)).flatten(0, 1)
    attention = functional.dropout(scores.softmax(-1), self.attention_dropout, self.training)
    read = (attention @ values).transpose(1, 2).flatten(2)
    found = functional.dropout(self.proj(read), self.dropout, self.training)
    found = found.view(images, high // rows, wide // columns, rows, columns, -1)
    found = found.permute(0, 1, 3, 2, 4, 5).reshape(images, high, wide, -1)
    if shifted:
        found = torch.roll(found, (shift[0], shift[1]), (1, 2))
    return found[:, :height, :width].contiguous()


def _apart(
    like: Tensor, size: tuple[int, int], window: tuple[int, int], shift: Sequence[int]
) -> Tensor:
    """What keeps parts of a shifted window apart that are no neighbours in the image.

    Returns:
        Shape (windows, positions, positions): -100 for two positions of different parts.
    """
    part = like.new_zeros(size)
    bounds = [
        (slice(0, -w), slice(-w, -s if s else None), slice(-s, None) if s else slice(0, 0))
        for w, s in zip(window, shift, strict=True)
    ]
    number = 0
    for some_rows in bounds[0]:
        for some_columns in bounds[1]:
            part[some_rows, some_columns] = number
            number += 1
    tiles = part.view(size[0] // window[0], window[0], size[1] // window[1], window[1])
    tiles = tiles.permute(0, 2, 1, 3).reshape(-1, window[0] * window[1])
    differ = tiles.unsqueeze(1) != tiles.unsqueeze(2)
    return like.new_zeros(differ.shape).masked_fill(differ, -100.0)
