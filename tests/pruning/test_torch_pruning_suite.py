"""What Torch-Pruning's own tests ask of an importance, asked of `SelectorImportance`.

One case for each situation of its test suite (1.6) in which an importance matters, rewritten small:
its pruners must work with ours as with its magnitude importance, to the widths that they promise.
"""

from collections.abc import Sequence

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional

from selector.data.forward import float_tensors
from selector.pruning.torch_pruning import SelectorImportance
from tests.networks import randomise

CLASSES = 5
SHAPE = (3, 8, 8)


def loss(outputs: object, targets: Tensor) -> Tensor:
    """Mean square of all outputs, for networks of any kind."""
    return torch.stack([(t - 1).square().mean() for t in float_tensors(outputs)]).mean()


def images(count: int, shape: Sequence[int] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def importance_of(model: nn.Module, *inputs: Tensor) -> SelectorImportance:
    given = inputs[0] if len(inputs) == 1 else tuple(inputs)
    targets = torch.arange(len(inputs[0])) % CLASSES
    return SelectorImportance(model, [(given, targets)], loss=loss)


def pruner_of(
    model: nn.Module, kept: Sequence[nn.Module], *inputs: Tensor, **options: object
) -> tp.pruner.BasePruner:
    example = inputs[0][:1] if len(inputs) == 1 else tuple(given[:1] for given in inputs)
    settings = {"pruning_ratio": 0.5, "num_heads": {}, **options}
    return tp.pruner.MagnitudePruner(
        model,
        example,
        importance=importance_of(model, *inputs),
        ignored_layers=list(kept),
        in_channel_groups={},
        out_channel_groups={},
        **settings,
    )


def chain(*widths: int) -> nn.Sequential:
    """3x3 convolutions with BatchNorm and ReLU, a mean, and a linear head."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES)]
    model = nn.Sequential(*layers)
    randomise(model)
    return model.eval()


def widths(model: nn.Module) -> list[int]:
    return [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]


class Joined(nn.Module):
    """Concatenations of concatenations, read by convolutions and halved again."""

    def __init__(self, *, split: bool = False) -> None:
        super().__init__()
        self.split = split
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)
        self.three = nn.Conv2d(16, 8, 3, padding=1)
        self.four = nn.Conv2d(24, 16, 1)
        self.five = nn.Conv2d(8, 8, 1) if split else nn.Identity()
        self.head = nn.Linear(8 if split else 16, CLASSES)

    def forward(self, given: Tensor) -> Tensor:
        both = torch.cat((self.one(given), self.two(given)), 1).relu()
        every = torch.cat((both, self.three(both).relu()), 1)
        maps = self.four(every).relu()
        if self.split:
            first, second = maps.chunk(2, 1)
            maps = self.five(first).relu() + second
        return self.head(maps.mean((2, 3)))


class Spread(nn.Module):
    """Two inputs, two outputs in a dictionary, and a parameter that is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Linear(6, 8)
        self.scale = nn.Parameter(torch.rand(CLASSES) + 0.5)
        self.mix = nn.Linear(16, 12)
        self.scores, self.boxes = nn.Linear(12, CLASSES), nn.Linear(12, 4)

    def forward(self, given: Tensor, side: Tensor) -> dict[str, Tensor]:
        joined = torch.cat((self.one(given).relu().mean((2, 3)), self.two(side).relu()), 1)
        inner = self.mix(joined).relu()
        return {"scores": self.scores(inner) * self.scale, "boxes": self.boxes(inner)}


class Residual(nn.Module):
    """A shortcut around two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.two, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Linear(8, CLASSES)

    def forward(self, given: Tensor) -> Tensor:
        maps = self.stem(given).relu()
        maps = (maps + self.two(self.one(maps).relu())).relu()
        return self.head(maps.mean((2, 3)))


def test_widths_are_halved_in_a_chain() -> None:
    model, batch = chain(16, 32, 8), images(4)
    pruner_of(model, [model[-1]], batch).step()
    assert widths(model) == [8, 16, 4]
    assert model(batch).shape == (4, CLASSES)


@pytest.mark.parametrize("split", [False, True])
def test_concatenations_and_chunks(split: bool) -> None:
    model, batch = randomise(Joined(split=split)).eval(), images(4)
    pruner_of(model, [model.head], batch).step()
    assert model(batch).shape == (4, CLASSES)
    assert (model.one.out_channels, model.two.out_channels) == (4, 4)
    assert model.three.in_channels == 8
    assert model.four.in_channels == 12


@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
def test_several_inputs_and_outputs_and_loose_parameters() -> None:
    model = randomise(Spread()).eval()
    batch, side = images(4), images(4, (6,))
    pruner_of(model, [model.scores, model.boxes], batch, side).step()
    assert (model.mix.in_features, model.mix.out_features) == (8, 6)
    found = model(batch, side)
    assert found["scores"].shape == (4, CLASSES)
    assert found["boxes"].shape == (4, 4)


def test_fully_connected_layers() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU())
    model.append(nn.Linear(12, CLASSES))
    batch = images(4, (6,))
    pruner_of(randomise(model).eval(), [model[-1]], batch).step()
    assert [layer.out_features for layer in model if isinstance(layer, nn.Linear)] == [8, 6, 5]
    assert model(batch).shape == (4, CLASSES)


def test_flattened_maps() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, CLASSES))
    batch = images(4)
    pruner_of(randomise(model).eval(), [model[-1]], batch).step()
    assert model[0].out_channels == 4
    assert model[3].in_features == 4 * 36
    assert model(batch).shape == (4, CLASSES)


def test_grouped_and_depthwise_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.Conv2d(16, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )
    batch = images(4)
    pruner_of(randomise(model).eval(), [model[-1]], batch).step()
    assert model[2].groups == model[2].in_channels == model[0].out_channels == 8
    assert model[4].groups == 4
    assert model(batch).shape == (4, CLASSES)


def test_a_ratio_for_single_layers() -> None:
    model, batch = chain(16, 16, 16), images(4)
    pruner_of(model, [model[-1]], batch, pruning_ratio_dict={model[3]: 0.25}).step()
    assert widths(model) == [8, 12, 8]


def test_iterative_steps_reach_the_ratio() -> None:
    model, batch = chain(16, 32), images(4)
    pruner = pruner_of(model, [model[-1]], batch, iterative_steps=4)
    seen = []
    for _ in range(4):
        pruner.step()
        seen.append(widths(model))
    assert seen == [[14, 28], [12, 24], [10, 20], [8, 16]]
    assert model(batch).shape == (4, CLASSES)


@pytest.mark.parametrize("isomorphic", [False, True])
def test_global_pruning(isomorphic: bool) -> None:
    model, batch = chain(16, 32, 16), images(4)
    options = {"global_pruning": True, "isomorphic": isomorphic, "max_pruning_ratio": 0.9}
    pruner_of(model, [model[-1]], batch, **options).step()
    assert sum(widths(model)) == pytest.approx(32, abs=2)
    assert min(widths(model)) >= 2
    assert model(batch).shape == (4, CLASSES)


def test_rounding_keeps_multiples() -> None:
    model, batch = chain(16, 32, 24), images(4)
    pruner_of(model, [model[-1]], batch, pruning_ratio=0.3, round_to=4).step()
    assert all(width % 4 == 0 for width in widths(model))
    assert widths(model) != [16, 32, 24]
    assert model(batch).shape == (4, CLASSES)


def test_interactive_pruning_is_up_to_the_caller() -> None:
    model, batch = randomise(Residual()).eval(), images(4)
    groups = list(pruner_of(model, [model.head], batch).step(interactive=True))
    assert len(groups) == 2
    for group in groups:
        if group[0].dep.target.module is model.one:
            group.prune()
    assert (model.one.out_channels, model.stem.out_channels) == (8, 8)
    assert model(batch).shape == (4, CLASSES)


def test_a_history_is_replayed_on_the_unpruned_network() -> None:
    model, batch = randomise(Residual()).eval(), images(4)
    pruner = pruner_of(model, [model.head], batch)
    pruner.step()
    fresh = randomise(Residual()).eval()
    graph = tp.DependencyGraph().build_dependency(fresh, example_inputs=batch[:1])
    graph.load_pruning_history(pruner.pruning_history())
    torch.testing.assert_close(fresh(batch), model(batch))


def test_interactive_groups_serve_soft_pruning() -> None:
    model, batch = chain(8, 8), images(4)
    for group in pruner_of(model, [model[-1]], batch).step(interactive=True):
        assert len(group[0].idxs) == 4
        layer = group[0].dep.target.module
        with torch.no_grad():
            layer.weight[group[0].idxs] = 0
    for layer in (model[0], model[3]):
        assert int((layer.weight.flatten(1).abs().sum(1) == 0).sum()) == 4
    assert widths(model) == [8, 8]


def test_training_goes_on_after_a_step() -> None:
    model, batch = chain(16, 16), images(8)
    pruner_of(model, [model[-1]], batch).step()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    functional.cross_entropy(model(batch), torch.arange(8) % CLASSES).backward()
    optimizer.step()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_single_output_channel_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    batch = images(4)
    pruner_of(randomise(model).eval(), [], batch).step()
    assert widths(model) == [4, 1]
    assert model(batch).shape == (4, 1, 8, 8)


def test_concatenation_along_another_dimension() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
            self.head = nn.Conv2d(8, CLASSES, 1)

        def forward(self, given: Tensor) -> Tensor:
            return self.head(torch.cat((self.one(given), self.two(given)), 2).relu())

    model, batch = randomise(Beside()).eval(), images(4)
    pruner_of(model, [model.head], batch).step()
    assert model.one.out_channels == model.two.out_channels == model.head.in_channels == 4
    assert model(batch).shape == (4, CLASSES, 16, 8)


def test_a_step_with_every_pruner() -> None:
    for pruner in (tp.pruner.BasePruner, tp.pruner.BNScalePruner, tp.pruner.GroupNormPruner):
        model, batch = chain(8, 8), images(4)
        pruner(
            model,
            batch[:1],
            importance=importance_of(model, batch),
            pruning_ratio=0.5,
            ignored_layers=[model[-1]],
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        ).step()
        assert widths(model) == [4, 4]
