"""`nn.MultiheadAttention` computes what PyTorch's own does, and its heads are pruned exactly."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.errors import SelectorError
from selector.network.attention import Projection, opened, run_narrow
from selector.network.checkpoint import load_pruned, save_pruned
from selector.network.compensation import measure_means
from selector.network.hooks import forward_hooks
from selector.network.surgery import Cut, apply_cuts
from selector.network.tracing import find_groups
from selector.planning.plan import Plan
from selector.pruning.apply import apply_plan
from selector.pruning.prune import prune
from selector.saliency.scoring import score
from tests.laws import check_law, check_structure, some_channels
from tests.networks import randomise

GENERATOR = torch.Generator().manual_seed(0)
MASKS = ["none", "pairs", "keys", "added", "heads"]


def masks_of(name: str) -> dict[str, Tensor]:
    return {
        "none": {},
        "pairs": {"attn_mask": torch.ones(5, 7).triu(2).bool()},
        "keys": {"key_padding_mask": torch.arange(7).expand(2, 7) > 4},
        "added": {"attn_mask": torch.randn(5, 7, dtype=torch.float64, generator=GENERATOR)},
        "heads": {"attn_mask": torch.rand(6, 5, 7, generator=GENERATOR) > 0.8},
    }[name]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", MASKS)
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
    given = masks_of(masks)
    expected = plain(*inputs, average_attn_weights=average, **given)
    found = narrow(*inputs, average_attn_weights=average, **given)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    alone, none = narrow(*inputs, need_weights=False, **given)
    torch.testing.assert_close(alone, expected[0], rtol=1e-10, atol=1e-12)
    assert none is None


def test_without_a_batch() -> None:
    plain = randomise(nn.MultiheadAttention(12, 3).double()).eval()
    narrow = copy.deepcopy(plain)
    run_narrow(narrow)
    queries = torch.randn(5, 12, dtype=torch.float64, generator=GENERATOR)
    for one, other in zip(plain(*[queries] * 3), narrow(*[queries] * 3), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_heads_that_are_left_give_what_they_gave(bias: bool) -> None:
    plain = randomise(nn.MultiheadAttention(12, 3, bias=bias, batch_first=True).double()).eval()
    tokens = torch.randn(2, 5, 12, dtype=torch.float64, generator=GENERATOR)
    masked, cut = copy.deepcopy(plain), copy.deepcopy(plain)
    masked.out_proj.weight.data[:, 4:8] = 0
    rows = tuple(start + i for start in (4, 16, 28) for i in range(4))
    apply_cuts(
        cut,
        [Cut("", "out", rows), Cut("", ".num_heads", (1,)), Cut("out_proj", "in", (4, 5, 6, 7))],
    )
    assert cut.in_proj_weight.shape == (24, 12)
    with torch.no_grad():
        torch.testing.assert_close(cut(*[tokens] * 3)[0], masked(*[tokens] * 3)[0])


class Encoder(nn.Module):
    """Tokens through two layers of PyTorch's own, with positions first where that is asked."""

    def __init__(self, batch_first: bool = True, across: bool = False) -> None:
        super().__init__()
        self.batch_first, self.across = batch_first, across
        self.embed = nn.Linear(6, 12)
        layers = [
            nn.TransformerEncoderLayer(12, 3, 10, dropout=0.0, batch_first=batch_first)
            for _ in range(2)
        ]
        self.layers = nn.Sequential(*layers)
        if across:
            self.read = nn.MultiheadAttention(12, 2, batch_first=batch_first)
        self.head = nn.Linear(12, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens if self.batch_first else tokens.transpose(0, 1))
        x = self.layers(x)
        if self.across:
            asked = x[:, :1] if self.batch_first else x[:1]
            x = self.read(asked, x, x, need_weights=False)[0]
        return self.head(x.mean(1 if self.batch_first else 0))


KINDS: dict[str, Callable[[], Encoder]] = {
    "images first": Encoder,
    "positions first": lambda: Encoder(batch_first=False),
    "read across": lambda: Encoder(across=True),
}


def made(kind: str) -> Encoder:
    return randomise(KINDS[kind]().double()).eval()  # type: ignore[return-value]


def tokens_of(images: int) -> Tensor:
    return torch.randn(images, 7, 6, dtype=torch.float64, generator=GENERATOR)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_groups_and_keep_the_law_on_fresh_images(kind: str) -> None:
    model = made(kind)
    groups = find_groups(model, tokens_of(4))
    check_structure(model, groups)
    heads = {f"layers.{i}.self_attn": 3 for i in range(2)}
    assert heads.items() <= {n: g.channels for n, g in groups.prunable.items()}.items()
    if kind == "read across":
        assert "other code uses its weight" in groups.refused["read"]
    generator = torch.Generator().manual_seed(1)
    removals = [(group, some_channels(group, generator)) for group in groups.prunable.values()]
    fresh = tokens_of(5)
    for removal in removals:
        check_law(model, fresh, [removal], 1e-9)
    check_law(model, fresh, removals, 1e-9)
    assert all("forward" not in vars(module) for module in model.modules())


def test_half_of_the_heads_are_half_of_both_projections() -> None:
    model = made("images first")
    costs = find_groups(model, tokens_of(4)).costs.layers
    assert costs["layers.0.self_attn"].macs == 7 * 12 * 36
    assert costs["layers.0.self_attn"].extras == 36
    assert costs["layers.0.self_attn.out_proj"].macs == 7 * 12 * 12


@pytest.mark.parametrize("kind", ["images first", "positions first"])
def test_what_hooks_see_is_by_image(kind: str) -> None:
    model, tokens = made(kind), tokens_of(3)
    seen: dict[str, list[tuple[int, ...]]] = {}

    def note(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        kind = "in" if isinstance(layer, Projection) else "out"
        seen[kind] = [tuple(args[0].shape), tuple(output.shape)]

    names = ("layers.0.self_attn", "layers.0.self_attn.out_proj")
    with torch.no_grad():
        plain = model(tokens)
        with forward_hooks(model, dict.fromkeys(names, note)):
            torch.testing.assert_close(model(tokens), plain)
    assert seen == {"in": [(3, 7, 12), (3, 7, 36)], "out": [(3, 7, 12), (3, 7, 12)]}
    assert opened(model.head).__enter__() is model.head


def test_the_mean_of_what_a_head_gives_is_measured() -> None:
    model, tokens = made("images first"), tokens_of(4)
    group = find_groups(model, tokens).prunable["layers.0.self_attn"]
    means = measure_means(model, [(tokens, None)], [group])["layers.0.self_attn.out_proj"]
    with torch.no_grad():
        x = model.embed(tokens)
        attention = model.layers[0].self_attn
        q, k, v = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, 2)
        heads = [
            (a @ b.mT / 2).softmax(-1) @ c
            for a, b, c in zip(*(t.split(4, 2) for t in (q, k, v)), strict=True)
        ]
        torch.testing.assert_close(means, torch.cat(heads, 2).mean((0, 1)))


def test_every_metric_scores_heads() -> None:
    model = made("images first").float()
    batches = [(tokens_of(4).float(), torch.tensor([0, 1, 2, 3])) for _ in range(2)]
    scores = score(model, batches)["layers.1.self_attn"]
    assert {"l1", "fisher", "taylor", "wanda"} <= set(scores)
    for name, values in scores.items():
        assert values.shape == (3,)
        assert bool(torch.isfinite(values).all()), name


def test_a_pruned_encoder_is_repaired_saved_and_replayed(tmp_path: Path) -> None:
    model = made("images first")
    batches = [(tokens_of(8), torch.arange(8) % 5) for _ in range(2)]
    result = prune(model, batches, ratio=0.4, rounds=1, criterion="fisher")
    small, tokens = result.model, tokens_of(3)
    assert small.layers[0].self_attn.num_heads == 2
    assert small.layers[0].self_attn.in_proj_weight.shape[0] == 24
    assert result.report.repair is not None
    refitted = {
        one.layer for one in result.report.repair.layers if one.done in ("refitted", "kept")
    }
    assert "layers.0.self_attn.out_proj" in refitted
    functional.cross_entropy(small.train()(tokens), torch.tensor([0, 1, 2])).backward()
    save_pruned(small.eval(), tmp_path / "small.safetensors")
    again = load_pruned(lambda: Encoder().double(), tmp_path / "small.safetensors").eval()
    assert torch.equal(again(tokens), small(tokens))
    result.plan.save(tmp_path / "plan.json")
    replayed = apply_plan(model, Plan.load(tmp_path / "plan.json"))
    assert [p.shape for p in replayed.parameters()] == [p.shape for p in small.parameters()]
    with pytest.raises(SelectorError, match="positions"):
        apply_cuts(model, [Cut("layers.0.self_attn", "out", (36,))])


@pytest.mark.slow
def test_nearly_all_of_a_vision_transformer_is_within_reach() -> None:
    from torchvision.models import vit_b_16

    torch.manual_seed(0)
    model = randomise(vit_b_16(image_size=32)).eval()
    images = torch.randn(2, 3, 32, 32, generator=GENERATOR)
    groups = find_groups(model, images)
    touched = {part.layer for group in groups.prunable.values() for part in group.slices}
    within = sum(cost.macs for name, cost in groups.costs.layers.items() if name in touched)
    assert within > 0.95 * groups.costs.total("macs")
    heads = [group for name, group in groups.prunable.items() if name.endswith("self_attention")]
    assert [group.channels for group in heads] == [12] * 12
    check_law(model, torch.randn(3, 3, 32, 32), [(group, [0, 5, 7]) for group in heads], 1e-4)
