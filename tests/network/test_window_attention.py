"""torchvision's attention in shifted windows: the same outputs, and heads that are pruned."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerBlockV2,
)
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d, SwinTransformer3d

from selector.network.attention import all_opened, run_narrow
from selector.network.checkpoint import load_pruned, save_pruned
from selector.network.tracing import find_groups
from selector.pruning.prune import prune
from tests.laws import check_law, check_structure, some_channels
from tests.networks import randomise

GENERATOR = torch.Generator().manual_seed(0)
KINDS = [ShiftedWindowAttention, ShiftedWindowAttentionV2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [[0, 0], [1, 2], [0, 2]])
@pytest.mark.parametrize("size", [(8, 12), (7, 9), (4, 12), (3, 4)])
def test_it_is_torchvisions_attention(
    kind: type[nn.Module], shift: list[int], size: tuple[int, int]
) -> None:
    plain = randomise(kind(12, [4, 4], shift, 3).double()).eval()  # type: ignore[call-arg]
    narrow = copy.deepcopy(plain)
    run_narrow(narrow)
    assert "forward" in vars(narrow)
    maps = torch.randn(2, *size, 12, dtype=torch.float64, generator=GENERATOR)
    torch.testing.assert_close(narrow(maps), plain(maps), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shift", [[0, 0, 0], [1, 2, 1], [1, 0, 2]])
@pytest.mark.parametrize("size", [(4, 8, 12), (3, 7, 9), (2, 4, 12), (1, 3, 4)])
def test_it_is_torchvisions_attention_of_videos(
    shift: list[int], size: tuple[int, int, int]
) -> None:
    plain = randomise(ShiftedWindowAttention3d(12, [2, 4, 4], shift, 3).double()).eval()
    narrow = copy.deepcopy(plain)
    run_narrow(narrow)
    assert "forward" in vars(narrow)
    maps = torch.randn(2, *size, 12, dtype=torch.float64, generator=GENERATOR)
    torch.testing.assert_close(narrow(maps), plain(maps), rtol=1e-9, atol=1e-12)


def test_heads_of_videos_keep_the_law() -> None:
    torch.manual_seed(0)
    plain = SwinTransformer3d([2, 2, 2], 12, [2, 1], [3, 6], [2, 2, 2], num_classes=5)
    model = randomise(plain.double()).eval()
    videos = torch.randn(2, 3, 4, 16, 16, dtype=torch.float64, generator=GENERATOR)
    groups = find_groups(model, videos)
    heads = {name: g.channels for name, g in groups.prunable.items() if name.endswith("qkv")}
    assert heads == {f"features.{n}.attn.qkv": h for n, h in (("0.0", 3), ("0.1", 3), ("2.0", 6))}
    generator = torch.Generator().manual_seed(1)
    removals = [(group, some_channels(group, generator)) for group in groups.prunable.values()]
    check_law(model, videos, removals, 1e-8)


def swin(kind: int) -> SwinTransformer:
    torch.manual_seed(0)
    block = SwinTransformerBlock if kind == 1 else SwinTransformerBlockV2
    return SwinTransformer([2, 2], 12, [2, 1], [3, 6], [2, 2], num_classes=5, block=block)


@pytest.mark.parametrize("kind", [1, 2])
def test_heads_and_the_stream_keep_the_law_on_fresh_images(kind: int) -> None:
    model = randomise(swin(kind).double()).eval()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=GENERATOR)
    groups = find_groups(model, images[:2])
    check_structure(model, groups)
    heads = {name: g.channels for name, g in groups.prunable.items() if name.endswith("qkv")}
    assert heads == {f"features.{n}.attn.qkv": h for n, h in (("1.0", 3), ("1.1", 3), ("3.0", 6))}
    assert groups.prunable["features.0.0"].channels == 12
    assert "features.1.0.mlp.0" in groups.prunable
    generator = torch.Generator().manual_seed(1)
    removals = [(group, some_channels(group, generator)) for group in groups.prunable.values()]
    for removal in removals:
        check_law(model, images, [removal], 1e-8)
    check_law(model, images, removals, 1e-8)
    assert all("forward" not in vars(module) for module in model.modules())
    with all_opened(model), torch.no_grad():
        calls: list[int] = []
        model.features[1][0].attn.qkv.register_forward_hook(lambda *_: calls.append(1))
        model(images)
    assert calls == [1]


def test_a_pruned_swin_is_trained_saved_and_built_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = randomise(swin(1)).eval()
    images = torch.randn(8, 3, 16, 16, generator=GENERATOR)
    batches = [(images, torch.arange(8) % 5), (images.flip(0), torch.arange(8) % 5)]
    small = prune(model, batches, ratio=0.4, rounds=1, criterion="fisher").model
    assert small.features[1][0].attn.num_heads == 2
    small.train()(images).sum().backward()
    save_pruned(small.eval(), tmp_path / "small.safetensors")
    again = load_pruned(lambda: swin(1), tmp_path / "small.safetensors").eval()
    assert torch.equal(again(images), small(images))
