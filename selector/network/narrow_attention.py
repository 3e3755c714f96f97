"""`nn.MultiheadAttention` for inputs that are narrower than its heads together.

PyTorch's own takes the width of its inputs for that of all heads, so it cannot run once inputs have
been cut. A cut gives the module this forward pass; its class and tensors stay.
"""

from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional


def run_narrow(module: nn.Module) -> None:
    """Make an attention module run whatever the width of its inputs."""
    if _can_run_narrow(module) and "forward" not in vars(module):
        vars(module)["forward"] = MethodType(narrow_attention, module)
        # PyTorch's fused layers read this before they take the weights themselves.
        vars(module)["_qkv_same_embed_dim"] = False


def _can_run_narrow(module: nn.Module) -> bool:
    """Whether this is an attention module with nothing that the narrow forward pass leaves out."""
    return (
        isinstance(module, nn.MultiheadAttention)
        and module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
    )


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
    weights = self.in_proj_weight.chunk(3)
    biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
    queries, keys, values = (
        functional.linear(tensor, weight, bias)
        .reshape(*tensor.shape[:2], self.num_heads, len(weight) // self.num_heads)
        .transpose(1, 2)
        for tensor, weight, bias in zip(inputs, weights, biases, strict=True)
    )
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    scores = _masked(scores, attn_mask, key_padding_mask)
    attention = functional.dropout(scores.softmax(-1), self.dropout, self.training)
    heads = (attention @ values).transpose(1, 2).flatten(2)
    outputs = functional.linear(heads, self.out_proj.weight, self.out_proj.bias)
    if not batched:
        outputs = outputs.squeeze(0)
    elif not self.batch_first:
        outputs = outputs.transpose(0, 1)
    if not need_weights:
        return outputs, None
    shown = attention.mean(1) if average_attn_weights else attention
    return outputs, shown if batched else shown.squeeze(0)


def _masked(scores: Tensor, pairs: Tensor | None, keys: Tensor | None) -> Tensor:
    """Scores with what the masks leave out at minus infinity."""
    if pairs is not None:
        if pairs.ndim == 3:
            pairs = pairs.reshape(*scores.shape[:2], *pairs.shape[1:])
        scores = scores + _added(pairs, scores)
    if keys is not None:
        scores = scores + _added(keys.reshape(-1, 1, 1, keys.shape[-1]), scores)
    return scores


def _added(mask: Tensor, scores: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, float("-inf"))
    return mask.to(scores)
