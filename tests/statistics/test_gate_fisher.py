"""Pairs of channels: sets' first- and second-order effects, against loops over images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from selector.data.forward import probe_inputs
from selector.network.tracing import find_groups
from selector.recording.record import record
from selector.records.records import Records
from selector.statistics.collect import measure_signals
from selector.statistics.gate_fisher import ROWS, WIDE, Pairs, PairSums, WidePairs
from selector.statistics.statistic import FIRST_ORDER, PAIRS
from selector.typing import Matrix
from tests.networks import data, small


def effects(kind: str, mode: str) -> tuple[Pairs, Matrix]:
    """What was measured of the first group, and t of every image and channel from autograd."""
    model, batches = small(kind, 5).double(), [(x.double(), y) for x, y in data(9, 3)]
    groups = find_groups(model, probe_inputs(model, batches)).required()
    name, group = next(iter(groups.items()))
    found = measure_signals(model, batches, groups, needs=PAIRS)[name].pairs[mode]
    seen: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0])

    (consumer,) = group.consumers
    handle = model.get_submodule(consumer).register_forward_pre_hook(keep)
    maps, slopes = [], []
    for inputs, targets in batches:
        for image in range(len(inputs)):
            seen.clear()
            loss = F.cross_entropy(model(inputs[image : image + 1]), targets[image : image + 1])
            (gradient,) = torch.autograd.grad(loss, seen[0])
            maps.append(seen[0].detach()[0])
            slopes.append(gradient[0])
    handle.remove()
    stacked = torch.stack(maps)
    if mode == "compensated":
        stacked = stacked - stacked.mean((0, 2, 3), keepdim=True)
    return found, (stacked * torch.stack(slopes)).sum((2, 3)).numpy()


@pytest.mark.parametrize("mode", ["plain", "compensated"])
def test_sets_act_as_the_images_say(mode: str) -> None:
    found, per_image = effects("plain", mode)
    channels = per_image.shape[1]
    chance = np.random.default_rng(0)
    chosen = (chance.random((6, channels)) < 0.5).astype(np.float64)
    together = per_image @ chosen.T
    first, second = found.of_sets(chosen)
    np.testing.assert_allclose(first, together.mean(0), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(second, np.square(together).mean(0), rtol=1e-9, atol=1e-18)


def test_single_channels_are_what_the_metrics_say() -> None:
    model, batches = small("residual", 4), data(8, 4)
    groups = find_groups(model, probe_inputs(model, batches)).required()
    for signals in measure_signals(model, batches, groups, needs=FIRST_ORDER | PAIRS).values():
        pairs = signals.pairs["plain"]
        diagonal = np.diag(pairs.second)
        np.testing.assert_allclose(diagonal, signals.taylor.square_of_sum.numpy(), rtol=1e-9)
        np.testing.assert_allclose(pairs.first, signals.taylor.sum.numpy(), rtol=1e-9)


def test_nothing_is_paired_unless_asked_for() -> None:
    model, batches = small("plain", 4), data(8, 4)
    groups = find_groups(model, probe_inputs(model, batches)).required()
    assert all(not found.pairs for found in measure_signals(model, batches, groups).values())


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 99))
def test_correlations_can_be_undone(channels: int, images: int, seed: int) -> None:
    per_image = np.random.default_rng(seed).normal(size=(images, channels))
    one = Pairs(per_image.mean(0), per_image.T @ per_image / images)
    again = Pairs.of_correlations(one.first, one.scale, one.correlations())
    np.testing.assert_allclose(again.second, one.second, rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_wide_groups_act_as_narrow_ones(channels: int, images: int, batch: int, seed: int) -> None:
    """As long as every image has a row of its own, without any approximation."""
    generator = torch.Generator().manual_seed(seed)
    taylor, gradient = torch.randn(2, images, channels, generator=generator, dtype=torch.float64)
    found = []
    for large in (False, True):
        sums = PairSums.of(channels, torch.device("cpu"))
        if large:
            sums = replace(sums, products=None)
        for parts in zip(taylor.split(batch), gradient.split(batch), strict=True):
            sums.add(*parts)
        mean = torch.linspace(-1, 1, channels, dtype=torch.float64)
        found.append(sums.means(images, taylor.mean(0), gradient.mean(0), mean))
    chosen = (np.random.default_rng(seed).random((4, channels)) < 0.5).astype(np.float64)
    for mode, narrow in found[0].items():
        wide = found[1][mode]
        np.testing.assert_allclose(wide.first, narrow.first)
        np.testing.assert_allclose(wide.second, narrow.second, atol=1e-12)
        np.testing.assert_allclose(wide.squares, narrow.squares, atol=1e-12)
        for one, other in ((wide, narrow), (wide.without([0]), narrow.without([0]))):
            sets = chosen[:, : len(other.first)]
            for a, b in zip(one.of_sets(sets), other.of_sets(sets), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-12)


def test_many_images_of_wide_groups_are_added_up_without_bias() -> None:
    """The stated error: (2 / ROWS)^(1/2) of the mean square of a set, over many sets."""
    generator = torch.Generator().manual_seed(0)
    taylor = torch.randn(4 * ROWS, 20, generator=generator, dtype=torch.float64)
    sums = [replace(PairSums.of(20, torch.device("cpu")), products=None) for _ in range(2)]
    for total, batch in zip(sums, (64, 100), strict=True):
        for part in taylor.split(batch):
            total.add(part, part)
    assert torch.allclose(sums[0].rows, sums[1].rows)
    mean = torch.zeros(20, dtype=torch.float64)
    wide = sums[0].means(len(taylor), taylor.mean(0), taylor.mean(0), mean)["plain"]
    exact = Pairs(wide.first, (taylor.T @ taylor / len(taylor)).numpy())
    chosen = (np.random.default_rng(0).random((300, 20)) < 0.5).astype(np.float64)
    error = wide.of_sets(chosen)[1] / exact.of_sets(chosen)[1] - 1
    assert abs(error.mean()) < 0.06
    assert 0.01 < np.square(error).mean() ** 0.5 < 2 * (2 / ROWS) ** 0.5


def test_a_wide_layer_keeps_no_matrix_of_pairs() -> None:
    torch.manual_seed(0)
    hidden = nn.Linear(8, WIDE + 1)
    model = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(WIDE + 1, 5))
    batches = [(x.float(), y) for x, y in data(9, 3, shape=(8,))]
    groups = find_groups(model, probe_inputs(model, batches)).required()
    (signals,) = measure_signals(model, batches, groups, needs=PAIRS).values()
    pairs = signals.pairs["plain"]
    assert isinstance(pairs, WidePairs)
    assert pairs.rows.shape == (9, WIDE + 1)
    np.testing.assert_allclose(pairs.squares, signals.taylor.square_of_sum.numpy())
    np.testing.assert_allclose(pairs.second, pairs.second.T)
    scale = pairs.scale[:, None] * pairs.scale
    np.testing.assert_allclose(pairs.second.diagonal(), scale.diagonal())


def test_records_keep_them(tmp_path: Path) -> None:
    found = record(small("plain", 5), data(9, 3), network="one", ratios=[0.5], contexts=0)
    found.save(tmp_path)
    for old, new in zip(found.groups, Records.load(tmp_path).groups, strict=True):
        assert set(new.pairs) == {"plain", "compensated"}
        for mode, pairs in old.pairs.items():
            scale = float(pairs.second.max())
            np.testing.assert_allclose(new.pairs[mode].second, pairs.second, atol=2e-3 * scale)
            np.testing.assert_allclose(new.pairs[mode].first, pairs.first, rtol=1e-6)
