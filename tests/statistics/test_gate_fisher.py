"""Pairs of channels: sets' first- and second-order effects, against loops over images."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from selector.data.forward import probe_inputs
from selector.network.tracing import find_groups
from selector.recording.record import record
from selector.records.records import Records
from selector.statistics.collect import measure_signals
from selector.statistics.gate_fisher import Pairs
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


def test_records_keep_them(tmp_path: Path) -> None:
    found = record(small("plain", 5), data(9, 3), network="one", ratios=[0.5], contexts=0)
    found.save(tmp_path)
    for old, new in zip(found.groups, Records.load(tmp_path).groups, strict=True):
        assert set(new.pairs) == {"plain", "compensated"}
        for mode, pairs in old.pairs.items():
            scale = float(pairs.second.max())
            np.testing.assert_allclose(new.pairs[mode].second, pairs.second, atol=2e-3 * scale)
            np.testing.assert_allclose(new.pairs[mode].first, pairs.first, rtol=1e-6)
