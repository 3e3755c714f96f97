"""Engines and modes of the oracle: one answer, and masked equals physically cut."""

import copy
import random
import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from selector.data.loss import evaluate
from selector.errors import SelectorError
from selector.network.compensation import apply_shifts, find_absorbers, measure_means, shifts_of
from selector.network.groups import Group
from selector.network.surgery import apply_cuts, cuts_of
from selector.network.tracing import find_groups
from selector.oracle.engines import Reference
from selector.oracle.fast_engine import Fast
from selector.oracle.fx_steps import take_apart
from selector.oracle.masked_engine import Masked, Removal
from selector.oracle.oracle import Measured, Oracle, OracleError, loss_changes
from tests.networks import STYLES, data, randomise, small, small_networks, state_of

Batches = list[tuple[Tensor, Tensor]]
Sets = dict[Group, list[tuple[int, ...]]]


def candidates(model: nn.Module, images: Tensor, seed: int = 0, most: int = 100) -> Sets:
    """One small and one large set of every group."""
    chance = random.Random(seed)
    groups = list(find_groups(model, images).prunable.values())[:most]
    return {
        group: [
            tuple(chance.sample(range(group.channels), count))
            for count in (1, max(1, int(0.6 * group.channels)))
        ]
        for group in groups
    }


def agree(one: Measured, other: Measured, relative: float) -> None:
    for group, changes in one.changes.items():
        for mine, theirs in zip(changes, other.changes[group], strict=True):
            scale = max(abs(theirs.nats), 1e-3)
            assert abs(mine.nats - theirs.nats) <= relative * scale, group.name
            error = abs(mine.standard_error - theirs.standard_error)
            assert error <= relative * max(theirs.standard_error, 1e-3)
            assert mine.images == theirs.images


def judged(model: nn.Module, batches: Batches, sets: Sets, relative: float = 1e-5) -> None:
    """All engines, both modes; the fast engine falls back for statistics over channels alone."""
    for mode in ("plain", "compensated"):
        means = measure_means(model, batches, sets) if mode == "compensated" else None
        found = [
            Oracle(mode, means, engine=engine).measure(model, batches, sets)  # type: ignore[arg-type]
            for engine in ("reference", "masked", "fast")
        ]
        agree(found[1], found[0], relative)
        agree(found[2], found[0], relative)
    with torch.no_grad():
        engine = Fast(model)
        engine.load(batches[0][0])
        for group, some in sets.items():
            engine.outputs(group, [Removal(channels) for channels in some])
    # Statistics over the channels that are kept are computed by the masked engine.
    norms = (nn.LayerNorm, nn.GroupNorm)
    over_channels = {
        group.name
        for group in sets
        if any(isinstance(model.get_submodule(part.layer), norms) for part in group.slices)
    }
    assert set(engine.fallen_back) <= over_channels


@settings(deadline=None, max_examples=25)
@given(model=small_networks(), seed=st.integers(0, 100), batch=st.integers(1, 5))
def test_engines_agree_on_random_networks(model: nn.Module, seed: int, batch: int) -> None:
    batches = data(6, batch)
    judged(model, batches, candidates(model, batches[0][0], seed))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("norm", [True, False])
def test_engines_agree_on_every_kind_of_coupling(style: str, norm: bool) -> None:
    model, batches = small(style, 6, norm=norm), data(6, 4)
    judged(model, batches, candidates(model, batches[0][0]))


CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "vgg11_bn": torchvision.models.vgg11_bn,
    "squeezenet1_1": torchvision.models.squeezenet1_1,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "densenet121": torchvision.models.densenet121,
    "googlenet": torchvision.models.googlenet,
    "efficientnet_b0": torchvision.models.efficientnet_b0,
    "regnet_y_400mf": torchvision.models.regnet_y_400mf,
    "mnasnet0_5": torchvision.models.mnasnet0_5,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_engines_agree_on_torchvision_classifiers(name: str) -> None:
    extra = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = CLASSIFIERS[name](num_classes=5, weights=None, **extra).double().eval()
    batches = data(3, 3, shape=(3, 64, 64))
    judged(model, batches, candidates(model, batches[0][0], most=6))


@pytest.mark.parametrize("style", ["residual", "flatten", "grouped", "concat"])
def test_candidates_together_equal_candidates_one_by_one(style: str) -> None:
    model = small(style, 6, norm=True)
    images = data()[0][0]
    sets = candidates(model, images)
    means = measure_means(model, data(), sets)
    absorbers = find_absorbers(model, images)
    with torch.no_grad():
        alone, together, masked = Fast(model), Fast(model, together=3), Masked(model)
        for engine in (alone, together, masked):
            engine.load(images)
        for group in sets:
            removals = [
                Removal((c,), shifts_of(model, group, (c,), means, absorbers) if c else ())
                for c in range(group.channels - 1)
            ]
            found = [e.outputs(group, removals) for e in (alone, together, masked)]
            for one, three, right in zip(*found, strict=True):
                assert torch.allclose(one, right, rtol=1e-9)  # type: ignore[arg-type]
                assert torch.allclose(three, right, rtol=1e-9)  # type: ignore[arg-type]


def test_a_small_memory_is_enough() -> None:
    model, batches = small("residual", 6, norm=True), data(12, 6)
    sets = candidates(model, batches[0][0])
    agree(
        Oracle(memory_bytes=1).measure(model, batches, sets),
        Oracle().measure(model, batches, sets),
        1e-9,
    )


def test_single_precision_is_near_the_reference() -> None:
    model = small("residual", 6, norm=True).float()
    batches = data(12, 6, dtype=torch.float32)
    sets = candidates(model, batches[0][0])
    reference = Oracle(engine="reference").measure(model, batches, sets)
    fast = Oracle().measure(model, batches, sets)
    for group, changes in fast.changes.items():
        for mine, theirs in zip(changes, reference.changes[group], strict=True):
            assert abs(mine.nats - theirs.nats) < 1e-3


class Branching(nn.Module):
    """Control flow that depends on values: no trace holds."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        if images.sum() > 1e9:
            return images
        return self.inner(images)


def test_what_cannot_be_traced_is_measured_all_the_same_and_said_once() -> None:
    inner = small("plain", 4)
    model, batches = Branching(inner), data(8, 4)
    with pytest.warns(UserWarning, match="whole forward passes"):
        changes = loss_changes(model, batches, "inner.stem", [[0], [1, 2]])
    # A second warning would be an error here.
    assert loss_changes(model, batches, "inner.stem", [[0], [1, 2]]) == changes
    expected = loss_changes(inner, batches, "stem", [[0], [1, 2]])
    assert [c.nats for c in changes] == pytest.approx([c.nats for c in expected], rel=1e-9)


class Sized(nn.Module):
    """A size of the batch that is read where nothing changes, and used where something does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.last = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.first(images))
        return self.last(maps.split(images.shape[0])[0].mean((2, 3)))


def test_a_trace_that_does_not_hold_is_found_out() -> None:
    model = randomise(Sized().double()).eval()
    images = data()[0][0]
    group = find_groups(model, images).prunable["first"]
    with torch.no_grad():
        engine, masked = Fast(model, together=2), Masked(model)
        engine.load(images)
        masked.load(images)
        removals = [Removal((0,)), Removal((1,)), Removal((2, 3))]
        for mine, right in zip(
            engine.outputs(group, removals), masked.outputs(group, removals), strict=True
        ):
            assert torch.allclose(mine, right)  # type: ignore[arg-type]


def test_folding_leaves_the_network_alone() -> None:
    model = small("residual", 4, norm=True)
    before = state_of(model)
    steps = take_apart(model)
    assert len(steps.folded) == 1
    Oracle().measure(model, data(), candidates(model, data()[0][0]))
    assert state_of(model) == before


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("norm", [True, False])
def test_compensated_removal_is_the_shift_applied_to_the_cut_network(
    style: str, norm: bool
) -> None:
    model, batches = small(style, 6, norm=norm), data(8, 4)
    groups = find_groups(model, batches[0][0]).prunable
    for group in groups.values():
        channels = tuple(range(0, group.channels - 1, 2)) or (0,)
        means = measure_means(model, batches, [group])
        shifts = shifts_of(model, group, channels, means, find_absorbers(model, batches[0][0]))
        smaller = copy.deepcopy(model)
        cuts = cuts_of([(group, channels)])
        apply_cuts(smaller, cuts)
        apply_shifts(smaller, shifts, {c.layer: c.indices for c in cuts if c.side != "in"})
        expected = evaluate(smaller, batches).loss - evaluate(model, batches).loss
        (change,) = loss_changes(model, batches, group, [channels], mode="compensated")
        assert change.nats == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_constant_channel_costs_nothing_once_compensated() -> None:
    """A channel that always has the same value can go for free, except at padded borders."""
    model = small("two_consumers", 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.first = nn.Conv2d(4, 5, 3).double()
        model.second = nn.Conv2d(4, 5, 3).double()
    model.stem.weight.data[2] = 0
    model.stem.bias.data[2] = 0.7
    batches = data(8, 4)
    (plain,) = loss_changes(model, batches, "stem", [[2]])
    (kept,) = loss_changes(model, batches, "stem", [[2]], mode="compensated")
    assert abs(plain.nats) > 1e-3
    assert abs(kept.nats) < 1e-12


def test_a_batchnorm_behind_absorbs_what_a_layer_without_bias_cannot() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5)]
    model = randomise(nn.Sequential(*layers, nn.Flatten(), nn.Linear(80, 5)).double()).eval()
    absorbers = find_absorbers(model, data()[0][0])
    assert absorbers == {"0": "0", "2": "3", "5": "5"}


def test_early_stopping_finds_the_winner_for_less() -> None:
    model = small("two_consumers", 6, norm=True)
    batches = data(256, 16)
    group = find_groups(model, batches[0][0]).prunable["stem"]
    sets = [[c] for c in range(6)] + [[0, 1], [2, 3]]
    full = Oracle().measure(model, batches, {group: sets})
    stopped = Oracle(stop=3.0).measure(model, batches, {group: sets})
    assert full.image_forwards == 256 * 9
    assert full.image_forwards_saved == 0
    assert stopped.image_forwards + stopped.image_forwards_saved == full.image_forwards
    assert stopped.image_forwards_saved > 0
    for some in (slice(0, 6), slice(6, 8)):
        best = min(full.changes[group][some], key=lambda change: change.nats)
        found = min(stopped.changes[group][some], key=lambda change: change.nats)
        assert found == best
        assert found.images == 256


class Noisy(nn.Module):
    """Dropout that stays on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.last = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.first(images)).mean((2, 3))
        return self.last(nn.functional.dropout(x, 0.5))


def test_a_network_that_is_not_deterministic_is_refused() -> None:
    quiet = small("plain")
    group = find_groups(quiet, data()[0][0]).prunable["stem"]
    model = Noisy().double()
    renamed = Group("first", 4, group.slices, 0.0, 0.0)
    with pytest.raises(SelectorError, match="other outputs for the same images: look for dropout"):
        loss_changes(model, data(), renamed, [[0]])


def test_what_was_measured_before_an_error_is_kept() -> None:
    model = small("plain")
    batches = data(8, 4)
    batches.append((batches[0][0] * float("nan"), batches[0][1]))
    sets: Sequence[Sequence[int]] = [[0], [1, 2]]
    group = find_groups(model, batches[0][0]).prunable["stem"]
    with pytest.raises(
        OracleError, match=r"NaN on batch 2.*\(8 images had been measured\)"
    ) as caught:
        loss_changes(model, batches, group, sets)
    kept = caught.value.measured[group]
    assert kept == loss_changes(model, batches[:2], group, sets)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"mode": "kind"}, "unknown mode 'kind'; known: plain, compensated"),
        ({"engine": "warp"}, "unknown engine 'warp'; known: fast, masked, reference"),
        ({"mode": "compensated"}, "needs them; see measure_means"),
        ({"stop": 0.0}, "standard errors above zero"),
        ({"memory_bytes": 0}, "memory_bytes=0 must be above zero"),
    ],
)
def test_an_oracle_that_means_nothing_is_refused(options: dict[str, object], culprit: str) -> None:
    with pytest.raises(SelectorError, match=culprit):
        Oracle(**options)  # type: ignore[arg-type]


def test_the_reference_engine_cuts() -> None:
    model = small("plain", 4)
    group = find_groups(model, data()[0][0]).prunable["stem"]
    seen: list[torch.Size] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, images: Tensor) -> Tensor:
            seen.append(self.inner.stem.weight.shape)
            return self.inner(images)

    engine = Reference(model)
    handle = model.register_forward_pre_hook(lambda m, _: seen.append(m.stem.weight.shape))
    with torch.no_grad():
        engine.load(data()[0][0])
        engine.outputs(group, [Removal((0, 3))])
    handle.remove()
    assert [shape[0] for shape in seen] == [4, 2]


class Switched(nn.Module):
    """A network whose forward pass depends on a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.twice = False

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.first(images)).mean((2, 3))
        return self.last(maps * 2 if self.twice else maps)


def test_a_network_that_was_changed_since_it_was_traced_is_measured_as_it_is() -> None:
    switched, batches = Switched(), data(8, 4)
    model = randomise(switched.double()).eval()
    before = loss_changes(model, batches, "first", [[0]])
    switched.twice = True
    changed = loss_changes(model, batches, "first", [[0]])
    assert changed != before
    expected = loss_changes(model, batches, "first", [[0]], engine="reference")
    assert changed[0].nats == pytest.approx(expected[0].nats, rel=1e-9)
