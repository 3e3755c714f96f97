"""Torch-Pruning takes the selector for an importance, and prunes as it says."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torchvision.models import resnet18

from selector.errors import SelectorError
from selector.learning.prediction import Prediction
from selector.learning.selector import SaliencySelector
from selector.network.tracing import find_groups
from selector.pruning.torch_pruning import SelectorImportance, marginal
from selector.records.decision import Decision
from selector.repair.correspondence import kept_after_history
from selector.repair.reconstruction import reconstruct
from tests.networks import data, small


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a projection where the width changes."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(before, after, 3, 1 if before == after else 2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(after)
        self.two = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.last = nn.BatchNorm2d(after)
        self.carry = nn.Identity() if before == after else nn.Conv2d(before, after, 1, 2)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.last(self.two(torch.relu(self.norm(self.one(maps)))))
        return torch.relu(inner + self.carry(maps))


class Residual(nn.Module):
    """Basic blocks of three widths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 16), Block(16, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.blocks(torch.relu(self.norm(self.stem(images))))
        return self.head(maps.mean((2, 3)))


def torchvision() -> nn.Module:
    return resnet18(num_classes=5)


IMAGES = data(8, 4, shape=(3, 32, 32), dtype=torch.float32)


@pytest.mark.parametrize(
    ("build", "head"),
    [(Residual, "head"), pytest.param(torchvision, "fc", marks=pytest.mark.slow)],
)
def test_a_network_is_pruned_globally(build: Callable[[], nn.Module], head: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        resnet = build().eval()
    importance = SelectorImportance(resnet, IMAGES)
    outputs = resnet.get_submodule(head)
    pruner = tp.pruner.MagnitudePruner(
        resnet,
        IMAGES[0][0][:1],
        importance=importance,
        global_pruning=True,
        pruning_ratio=0.4,
        max_pruning_ratio=0.9,
        iterative_steps=2,
        ignored_layers=[outputs],
    )
    groups = find_groups(resnet, IMAGES[0][0]).prunable
    before = {name: group.channels for name, group in groups.items()}
    pruner.step()
    pruner.step()
    left = find_groups(resnet, IMAGES[0][0]).prunable
    # A group of one channel is no group to prune any more.
    after = {name: left[name].channels if name in left else 1 for name in before}
    assert resnet(IMAGES[0][0]).shape == (4, 5)
    assert outputs.out_features == 5
    shares = [1 - after[name] / before[name] for name in before]
    assert sum(after.values()) == pytest.approx(0.6 * sum(before.values()), rel=0.1)
    # One scale for all groups: the budget is not spent evenly.
    assert max(shares) - min(shares) > 0.1


@pytest.mark.parametrize("style", ["residual", "depthwise", "flatten", "plain"])
def test_scores_are_the_trusted_order_in_nats(style: str) -> None:
    model, batches = small(style, 8, norm=style == "plain"), data()
    importance = SelectorImportance(model, batches)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=batches[0][0])
    groups = find_groups(model, batches[0][0])
    seen = set()
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        name = next(n for n, m in model.named_modules() if m is group[0].dep.target.module)
        scores = importance(group)
        if scores is None:
            assert name in groups.refused
            continue
        seen.add(name)
        assert scores.shape == (len(group[0].idxs),)
        assert len(set(scores.tolist())) == len(scores)
        assert bool((scores > 0).all())
    assert seen & set(groups.prunable)
    assert "head" not in seen


def test_scores_are_made_anew_only_when_shapes_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = small("plain", 8), data()
    calls = []
    predict = SaliencySelector.predict

    def counted(self: SaliencySelector, decision: Decision) -> Prediction:
        calls.append(1)
        return predict(self, decision)

    monkeypatch.setattr(SaliencySelector, "predict", counted)
    importance = SelectorImportance(model, batches)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=batches[0][0])
    group = graph.get_pruning_group(model.stem, tp.prune_conv_out_channels, list(range(8)))
    first = importance(group)
    made = len(calls)
    assert torch.equal(importance(group), first)
    assert len(calls) == made
    graph.get_pruning_group(model.stem, tp.prune_conv_out_channels, [3]).prune()
    smaller = graph.get_pruning_group(model.stem, tp.prune_conv_out_channels, list(range(7)))
    assert importance(smaller).shape == (7,)
    assert len(calls) > made


def test_one_channel_more_costs_what_the_curve_says() -> None:
    curve = {0: 0.0, 2: 0.2, 6: 1.0, 10: 5.0}
    costs = marginal(curve, 12)
    assert bool((np.diff(costs) > 0).all())
    # The sums of the ranks follow the curve: within the pieces, and at their ends nearly.
    assert costs[:2].sum() == pytest.approx(0.2, rel=1e-6)
    assert costs[:6].sum() == pytest.approx(1.0, rel=1e-6)
    assert costs[:10].sum() == pytest.approx(5.0, rel=1e-6)
    straight = marginal({0: 0.0, 5: 0.5, 10: 1.0}, 10)
    assert straight == pytest.approx(np.full(10, 0.1), rel=1e-6)


def test_bad_input_is_named() -> None:
    with pytest.raises(SelectorError, match="batches are empty"):
        SelectorImportance(small("plain"), [])
    with pytest.raises(SelectorError, match=r"ratio=2 must be a share between 0 and 1"):
        SelectorImportance(small("plain"), data(), ratio=2)


PRUNERS = [
    "BasePruner",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("MagnitudePruner", "BNScalePruner", "GroupNormPruner", "GrowingRegPruner")
    ),
]


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_takes_it_and_its_history_can_be_repaired(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = Residual().eval()
    pruned = copy.deepcopy(original)
    pruner = getattr(tp.pruner, name)(
        pruned,
        IMAGES[0][0][:1],
        importance=SelectorImportance(pruned, IMAGES),
        pruning_ratio=0.3,
        iterative_steps=2,
        ignored_layers=[pruned.head],
    )
    for _ in range(2):
        for group in pruner.step(interactive=True):
            group.prune()
    assert pruned.stem.out_channels < original.stem.out_channels
    assert pruned(IMAGES[0][0]).shape == (4, 5)
    repaired, report = reconstruct(original, pruned, IMAGES, kept=pruner.pruning_history())
    assert report.layers

    def gap(model: nn.Module) -> float:
        with torch.no_grad():
            gaps = [(model(x) - original(x)).square().mean() for x, _ in IMAGES]
        return float(torch.stack(gaps).mean())

    assert gap(repaired) <= gap(pruned)


def test_steps_that_torch_pruning_notes_twice_count_once() -> None:
    original = Residual().eval()
    pruned = copy.deepcopy(original)
    graph = tp.DependencyGraph().build_dependency(pruned, example_inputs=IMAGES[0][0][:1])
    for layer, channels in ((pruned.stem, [1, 4]), (pruned.blocks[1].one, [0, 3])):
        group = graph.get_pruning_group(layer, tp.prune_conv_out_channels, channels)
        group.prune(channels)
    history = graph.pruning_history()
    kept = kept_after_history(original, history, IMAGES[0][0][:1], pruned=pruned)
    assert kept["stem"] == (0, 2, 3, 5, 6, 7)
    reconstruct(original, pruned, IMAGES, kept=history)


def test_the_history_of_another_network_is_refused() -> None:
    original = Residual().eval()
    pruned = copy.deepcopy(original)
    for history in ([["stem", True, [0, 1]]], [["trunk", True, [0]]]):
        with pytest.raises(SelectorError, match="does not lead from original to pruned"):
            reconstruct(original, pruned, IMAGES, kept=history)
