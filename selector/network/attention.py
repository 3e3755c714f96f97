"""`nn.MultiheadAttention` taken apart into two linear layers, and run at other widths.

PyTorch's own takes the width of its inputs for that of all heads, so it cannot run once inputs or
heads have been cut. A cut gives the module this forward pass; its class and tensors stay. The
module itself stands for the layer that makes queries, keys and values, with one packed weight.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.network.grid_attention import grid_attention, is_grid_attention
from selector.network.window_attention import is_window_attention, window_attention

_PROJECTION = "_selector_projection"
"""Where a module keeps the layer that hooks see in its place, while there are any."""


def is_packed_attention(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether this is an attention module with nothing that the forward pass here leaves out."""
    return (
        isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
        and module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
    )


def is_attention(module: nn.Module) -> bool:
    """Whether this is attention of any library, going by the number of heads that it keeps."""
    return isinstance(getattr(module, "num_heads", None), int)


def run_narrow(module: nn.Module) -> None:
    """Make an attention module run whatever the width of its inputs and heads."""
    forward = _forward_of(module)
    if forward is None or "forward" in vars(module):
        return
    vars(module)["forward"] = MethodType(forward, module)
    if is_packed_attention(module):
        # PyTorch's fused layers read this before they take the weights themselves.
        vars(module)["_qkv_same_embed_dim"] = False


def _forward_of(module: nn.Module) -> Callable[..., object] | None:
    """The forward pass that runs at any width; None where the module's own is to run."""
    if is_packed_attention(module):
        return narrow_attention
    if is_window_attention(module):
        return window_attention
    return grid_attention if is_grid_attention(module) else None


class Projection(nn.Linear):
    """The layer that makes queries, keys and values, as hooks see it; it has no tensors itself."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        nn.Module.__init__(self)
        # Not as a module of this one: neither is a part of the other.
        vars(self)["_attention"] = attention

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]
        """Of the attention, shape (3 * width of all heads, width of the inputs)."""
        return cast(nn.MultiheadAttention, vars(self)["_attention"]).in_proj_weight

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """Of the attention."""
        return cast(nn.MultiheadAttention, vars(self)["_attention"]).in_proj_bias

    @property
    def in_features(self) -> int:  # type: ignore[override]
        """The width of the inputs."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:  # type: ignore[override]
        """The width of queries, keys and values together."""
        return self.weight.shape[0]


@contextmanager
def opened(module: nn.Module) -> Iterator[nn.Module]:
    """Context in which an attention module calls both of its layers, so that hooks on them run.

    Args:
        module: Any module; nothing happens unless it is attention of PyTorch or torchvision.

    Yields:
        What hooks for the module belong on: of attention its `Projection`, which is called where
        queries, keys and values are made of the same tensor; else the module itself.
    """
    if _PROJECTION in vars(module) or _forward_of(module) is None:
        yield vars(module).get(_PROJECTION, module)
        return
    kept = {name: vars(module)[name] for name in _CHANGED if name in vars(module)}
    try:
        run_narrow(module)
        found = module
        if is_packed_attention(module):
            found = vars(module)[_PROJECTION] = Projection(module)
        yield found
    finally:
        for name in (*_CHANGED, _PROJECTION):
            vars(module).pop(name, None)
        vars(module).update(kept)


@contextmanager
def all_opened(model: nn.Module) -> Iterator[None]:
    """Context in which every attention module of a network calls its layers."""
    with ExitStack() as stack:
        for module in model.modules():
            stack.enter_context(opened(module))
        yield


_CHANGED = ("forward", "_qkv_same_embed_dim")


def narrow_attention(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What `nn.MultiheadAttention.forward` computes, with heads as wide as their weights.

    Args:
        self: The module.
        query: Shape (images, positions, width), or without images, or with positions first where
            the module's `batch_first` is False; `key` and `value` alike.
        key: What is attended to.
        value: What is read of it.
        key_padding_mask: True, or a large negative number, for keys to be left out.
        need_weights: Return the attention as well.
        attn_mask: The same for pairs of queries and keys.
        average_attn_weights: Average the attention over heads.
        is_causal: A hint that `attn_mask` is causal; the mask says so itself.

    Returns:
        Outputs like `query`, and the attention or None.
    """
    inputs = [query, key, value]
    batched = query.ndim == 3
    if not batched:
        inputs = [tensor.unsqueeze(0) for tensor in inputs]
    elif not self.batch_first:
        inputs = [tensor.transpose(0, 1) for tensor in inputs]
    queries, keys, values = (
        tensor.view(*tensor.shape[:2], self.num_heads, -1).transpose(1, 2)
        for tensor in _projected(self, inputs, same=query is key is value)
    )
    scale = queries.shape[-1] ** -0.5
    dropout = self.dropout if self.training else 0.0
    mask = _mask((len(queries), self.num_heads), attn_mask, key_padding_mask, queries)
    attention = None
    if need_weights:
        scores = queries @ keys.transpose(-1, -2) * scale
        scores = scores if mask is None else scores + mask
        attention = functional.dropout(scores.softmax(-1), dropout)
        heads = attention @ values
    else:
        heads = functional.scaled_dot_product_attention(
            queries, keys, values, mask, dropout, scale=scale
        )
    outputs = self.out_proj(heads.transpose(1, 2).flatten(2))
    if not batched:
        outputs = outputs.squeeze(0)
    elif not self.batch_first:
        outputs = outputs.transpose(0, 1)
    if attention is None:
        return outputs, None
    shown = attention.mean(1) if average_attn_weights else attention
    return outputs, shown if batched else shown.squeeze(0)


def _projected(
    module: nn.MultiheadAttention, inputs: list[Tensor], *, same: bool
) -> tuple[Tensor, ...]:
    """Queries, keys and values, shape (images, positions, width of all heads)."""
    if same:
        layer = vars(module).get(_PROJECTION)
        if layer is None:
            packed = functional.linear(inputs[0], module.in_proj_weight, module.in_proj_bias)
        else:
            packed = layer(inputs[0])
        queries, keys, values = packed.view(*packed.shape[:2], 3, -1).unbind(-2)
        return queries, keys, values
    weights = module.in_proj_weight.chunk(3)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    return tuple(map(functional.linear, inputs, weights, biases))


def _mask(
    shape: tuple[int, int], pairs: Tensor | None, keys: Tensor | None, like: Tensor
) -> Tensor | None:
    """What is added to the scores: minus infinity for what the masks leave out."""
    found = None
    if pairs is not None:
        pairs = pairs.reshape(*shape, *pairs.shape[1:]) if pairs.ndim == 3 else pairs
        found = _added(pairs, like)
    if keys is not None:
        by_key = _added(keys.reshape(-1, 1, 1, keys.shape[-1]), like)
        found = by_key if found is None else found + by_key
    return found


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
    return mask.to(like)
