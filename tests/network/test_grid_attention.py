"""torchvision's attention in blocks and grids: the same outputs, and heads that are pruned."""

import copy

import pytest
import torch
from torchvision.models.maxvit import MaxVit, RelativePositionalMultiHeadAttention

from selector.network.attention import run_narrow
from selector.network.checkpoint import load_pruned, save_pruned
from selector.network.tracing import find_groups
from selector.pruning.prune import prune
from tests.laws import check_law, check_structure, some_channels
from tests.networks import randomise

GENERATOR = torch.Generator().manual_seed(0)


def maxvit() -> MaxVit:
    torch.manual_seed(0)
    return MaxVit((16, 16), 8, 2, [8, 12], [1, 1], 4, 0.0, num_classes=5)


@pytest.mark.parametrize("heads", [1, 3])
def test_it_is_torchvisions_attention(heads: int) -> None:
    plain = RelativePositionalMultiHeadAttention(4 * heads, 4, 9)
    narrow = copy.deepcopy(randomise(plain.double()).eval())
    run_narrow(narrow)
    assert "forward" in vars(narrow)
    tokens = torch.randn(2, 5, 9, 4 * heads, dtype=torch.float64, generator=GENERATOR)
    torch.testing.assert_close(narrow(tokens), plain(tokens), rtol=1e-9, atol=1e-12)


def test_heads_and_the_stream_keep_the_law() -> None:
    model = randomise(maxvit().double()).eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=GENERATOR)
    groups = find_groups(model, images)
    check_structure(model, groups)
    heads = {name: g.channels for name, g in groups.prunable.items() if name.endswith("to_qkv")}
    assert sorted(heads.values()) == [2, 2, 3, 3]
    generator = torch.Generator().manual_seed(1)
    removals = [(group, some_channels(group, generator)) for group in groups.prunable.values()]
    check_law(model, images, removals, 1e-8)
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_pruned_maxvit_is_trained_saved_and_built_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = randomise(maxvit()).eval()
    images = torch.randn(8, 3, 16, 16, generator=GENERATOR)
    batches = [(images, torch.arange(8) % 5)]
    small = prune(model, batches, ratio=0.4, rounds=1, criterion="l1").model
    small.train()(images).sum().backward()
    save_pruned(small.eval(), tmp_path / "small.safetensors")
    again = load_pruned(maxvit, tmp_path / "small.safetensors").eval()
    assert torch.equal(again(images), small(images))
