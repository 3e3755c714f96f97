"""torchvision's attention in blocks and grids (MaxViT), for inputs and heads of any width.

torchvision's own takes the width of its inputs for that of all heads. A cut gives the module this
forward pass; its class and tensors stay.
"""

from typing import Any

from torch import Tensor, nn

_MODULE, _NAME = "torchvision.models.maxvit", "RelativePositionalMultiHeadAttention"


def is_grid_attention(module: nn.Module) -> bool:
    """Whether this is torchvision's module, with a forward pass of torchvision's."""
    kind = type(module)
    return (kind.__module__, kind.__name__, kind.forward.__module__) == (_MODULE, _NAME, _MODULE)


def grid_attention(self: Any, tokens: Tensor) -> Tensor:
    """What torchvision's module computes, with heads as wide as their weights.

    Args:
        self: The module.
        tokens: Shape (images, windows, positions, width).

    Returns:
        Outputs of that shape.
    """
    packed = self.to_qkv(tokens)
    packed = packed.view(*packed.shape[:3], 3, self.n_heads, -1).permute(3, 0, 1, 4, 2, 5)
    queries, keys, values = packed.unbind(0)
    scores = queries @ (keys * self.scale_factor).transpose(-2, -1)
    scores = scores + self.get_relative_positional_bias()
    read = (scores.softmax(-1) @ values).transpose(2, 3).flatten(3)
    outputs: Tensor = self.merge(read)
    return outputs
