"""Attention for narrower inputs computes what PyTorch's own does, where that runs as well."""

import copy

import pytest
import torch
from torch import nn

from selector.network.narrow_attention import run_narrow
from tests.networks import randomise

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", ["none", "pairs", "keys", "added", "heads"])
@pytest.mark.parametrize("average", [True, False])
def test_it_is_pytorchs_attention(batch_first: bool, masks: str, average: bool) -> None:
    plain = nn.MultiheadAttention(12, 3, batch_first=batch_first)
    randomise(plain.double()).eval()
    narrow = copy.deepcopy(plain)
    run_narrow(narrow)
    queries = torch.randn(2, 5, 12, dtype=torch.float64, generator=GENERATOR)
    keys = torch.randn(2, 7, 12, dtype=torch.float64, generator=GENERATOR)
    inputs = [queries, keys, keys.tanh()]
    if not batch_first:
        inputs = [tensor.transpose(0, 1) for tensor in inputs]
    given = {
        "none": {},
        "pairs": {"attn_mask": torch.ones(5, 7).triu(2).bool()},
        "keys": {"key_padding_mask": torch.arange(7).expand(2, 7) > 4},
        "added": {"attn_mask": torch.randn(5, 7, dtype=torch.float64, generator=GENERATOR)},
        "heads": {"attn_mask": torch.rand(6, 5, 7, generator=GENERATOR) > 0.8},
    }[masks]
    expected = plain(*inputs, average_attn_weights=average, **given)
    found = narrow(*inputs, average_attn_weights=average, **given)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert narrow(*inputs, need_weights=False, **given)[1] is None


def test_without_a_batch() -> None:
    plain = randomise(nn.MultiheadAttention(12, 3).double()).eval()
    narrow = copy.deepcopy(plain)
    run_narrow(narrow)
    queries = torch.randn(5, 12, dtype=torch.float64, generator=GENERATOR)
    for one, other in zip(plain(*[queries] * 3), narrow(*[queries] * 3), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
