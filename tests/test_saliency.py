"""Every metric equals its slow twin, obeys the laws of scores, and leaves the network alone."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from selector.groups import Group
from selector.saliency import METRICS
from selector.scoring import lowest, score
from selector.tracing import find_groups
from tests.networks import STYLES, data, small, small_networks, state_of
from tests.reference import TWINS, Scene, singles

REAL = [name for name in METRICS if name != "random"]
GATED = ["mean_gradient", "taylor", "taylor_elementwise", "fisher"]


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    scale = max(float(other.abs().max()), 1e-12)
    return float((one - other).abs().max()) <= tolerance * scale


def test_every_metric_but_chance_has_a_slow_twin() -> None:
    assert set(TWINS) == set(REAL)


@settings(deadline=None, max_examples=15)
@given(model=small_networks(), count=st.integers(2, 5), batch=st.integers(1, 3))
def test_metrics_equal_their_slow_twins(model: nn.Module, count: int, batch: int) -> None:
    batches = data(count, batch, seed=count)
    scores = score(model, batches)
    groups = find_groups(model, batches[0][0]).prunable
    assert scores.keys() == groups.keys()
    for name, group in groups.items():
        scene = Scene(model, group, singles(batches))
        for metric, values in scores[name].items():
            if metric in TWINS:
                expected = torch.tensor(TWINS[metric](scene), dtype=torch.float64)
                assert close(values, expected, 1e-5), (name, metric, values, expected)


def test_twins_hold_for_a_loss_of_the_users_own() -> None:
    def squares(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(outputs, functional.one_hot(targets, 5).double())

    model, batches = small("two_consumers", norm=True), data(5, 2)
    scores = score(model, batches, loss=squares)
    for name, group in find_groups(model, batches[0][0]).prunable.items():
        scene = Scene(model, group, singles(batches), squares)
        for metric in ("taylor", "taylor_elementwise", "mean_gradient", "fisher", "snip"):
            assert close(scores[name][metric], torch.tensor(TWINS[metric](scene)).double(), 1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_finite_one_a_channel_and_not_negative(metric: str) -> None:
    for style in STYLES:
        model = small(style, norm=True)
        groups = find_groups(model, data()[0][0]).prunable
        scores = score(model, data())
        assert any(metric in found for found in scores.values())
        for name, found in scores.items():
            if metric in found:
                assert found[metric].shape == (groups[name].channels,)
                assert found[metric].dtype == torch.float64
                assert found[metric].isfinite().all()
                assert (found[metric] >= 0).all()


@pytest.mark.parametrize("metric", REAL)
@pytest.mark.parametrize("style", ["two_consumers", "depthwise", "flatten"])
def test_permuting_channels_permutes_scores(metric: str, style: str) -> None:
    model, batches = small(style, 5, act="silu", norm=True), data()
    group = find_groups(model, batches[0][0]).prunable["stem"]
    order = [3, 0, 4, 1, 2]
    permuted = reordered(model, group, order)
    assert torch.allclose(permuted(batches[0][0]), model(batches[0][0]))
    before = score(model, batches)["stem"][metric]
    after = score(permuted, batches)["stem"][metric]
    assert close(after, before[order], 1e-9)
    assert not close(after, before, 1e-3)


def reordered(model: nn.Module, group: Group, order: list[int]) -> nn.Module:
    """The same function with a group's channels in another order, by hand."""
    copied = copy.deepcopy(model)
    for part in group.slices:
        layer = copied.get_submodule(part.layer)
        width = part.indices[-1] + 1
        block = width // group.channels
        index = torch.cat([torch.arange(block) + c * block for c in order])
        for name, tensor in layer.state_dict(keep_vars=True).items():
            if tensor.ndim == 0 or (part.side == "in" and name != "weight"):
                continue
            dimension = 1 if part.side == "in" else 0
            tensor.data = tensor.data.index_select(dimension, index)
    return copied


@pytest.mark.parametrize("metric", METRICS)
def test_splitting_the_images_otherwise_changes_nothing(metric: str) -> None:
    for style in ("two_consumers", "flatten"):
        model = small(style, norm=True)
        whole, parts = score(model, data(12, 12)), score(model, data(12, 5))
        for name, found in whole.items():
            if metric in found:
                assert close(parts[name][metric], found[metric], 1e-6)


@pytest.mark.parametrize("metric", GATED)
@pytest.mark.parametrize("style", ["plain", "two_consumers", "flatten", "depthwise"])
def test_a_channel_that_nothing_reads_scores_zero(metric: str, style: str) -> None:
    model, batches = small(style, 5, act="silu"), data()
    group = find_groups(model, batches[0][0]).prunable["stem"]
    for part in group.slices:
        if part.side == "in":
            own = [i for i, c in zip(part.indices, part.channels, strict=True) if c == 2]
            dimension = 0 if isinstance(model.get_submodule(part.layer), nn.ConvTranspose2d) else 1
            model.get_submodule(part.layer).weight.data.index_fill_(dimension, torch.tensor(own), 0)
    scores = score(model, batches)["stem"][metric]
    assert scores[2] == 0
    assert lowest(scores, 1) == (2,)


def test_chance_is_an_argument_and_only_that() -> None:
    model, batches = small("plain"), data()

    def drawn(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return score(model, batches, ["random"], generator=generator)["stem"]["random"]

    torch.manual_seed(5)
    global_before = torch.get_rng_state()
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert torch.equal(torch.get_rng_state(), global_before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("style", STYLES)
def test_the_network_is_left_as_found(style: str, training: bool) -> None:
    model = small(style, norm=True, act="prelu").train(training)
    model.norm.train(not training)
    model.stem.weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = state_of(model)
    score(model, data())
    assert state_of(model) == before


def test_the_network_is_left_as_found_after_an_error() -> None:
    model = small("residual", norm=True).train()
    before = state_of(model)

    def fails(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        score(model, data(), loss=fails)
    assert state_of(model) == before


def test_train_mode_and_frozen_parameters_change_no_score() -> None:
    model = small("two_consumers", norm=True)
    expected = score(model, data())
    frozen = copy.deepcopy(model).train().requires_grad_(False)
    for name, found in score(frozen, data()).items():
        for metric, values in found.items():
            assert torch.equal(values, expected[name][metric]), (name, metric)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
    st.integers(0, 8),
)
def test_lowest_takes_the_lowest_and_ties_by_number(values: list[int], count: int) -> None:
    expected = sorted(sorted(range(len(values)), key=lambda c: (values[c], c))[:count])
    assert lowest(torch.tensor(values, dtype=torch.float64), count) == tuple(expected)
