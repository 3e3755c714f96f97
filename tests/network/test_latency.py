"""Latency: a table whose arithmetic is exact, a target that is met, timings taken in turns."""

import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selector.errors import SelectorError
from selector.network import latency
from selector.network.latency import (
    LatencyTable,
    median_interval,
    median_seconds,
    time_both,
    time_layers,
)
from selector.network.tracing import find_groups
from selector.planning.choose import choose
from selector.pruning.prune import prune
from tests.networks import data, small, state_of


@pytest.fixture
def by_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are counted, not read: every convolution and linear layer takes as long as its work.

    What a layer costs falls with either side, plus a part that no width changes.
    """
    now = [0.0]
    convolve, multiply = nn.functional.conv2d, nn.functional.linear

    def conv2d(inputs: Tensor, weight: Tensor, *rest: object, **more: object) -> Tensor:
        found = convolve(inputs, weight, *rest, **more)  # type: ignore[call-overload]
        now[0] += 1e-9 * found.numel() * weight[0].numel() + 1e-6
        return found

    def linear(inputs: Tensor, weight: Tensor, *rest: object) -> Tensor:
        now[0] += 1e-9 * len(inputs) * weight.numel() + 1e-6
        return multiply(inputs, weight, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.functional, "conv2d", conv2d)
    monkeypatch.setattr(nn.functional, "linear", linear)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(latency, "SHORTEST", 1e-9)


@pytest.mark.parametrize("keep", [0.8, 0.6])
@pytest.mark.parametrize("style", ["plain", "residual", "two_consumers"])
def test_the_target_is_met(by_work: None, style: str, keep: float) -> None:
    model, batches = small(style, 24), data()
    untouched = state_of(model)
    result = prune(model, batches, criterion="l1", keep_latency=keep)
    assert state_of(model) == untouched
    timed = time_both(model, result.model, batches[0][0], 4)
    assert timed.ratio == pytest.approx(keep, abs=0.05)
    assert result.report.goal is not None
    assert result.report.goal.target == "keep_latency"
    assert result.report.goal.got == pytest.approx(timed.ratio)
    assert result.report.latency is not None
    assert "latency, 4 images" in str(result.report)
    assert f"asked keep_latency={keep}" in str(result.report)


def test_a_plan_foretells_the_latency(by_work: None) -> None:
    plan = choose(small("plain", 24), data(), criterion="l1", keep_latency=0.7)
    assert plan.goal is not None
    assert plan.goal.got == pytest.approx(0.7, abs=0.05)


def test_the_table_holds_what_the_layers_take(by_work: None) -> None:
    model, images = small("plain", 20), data()[0][0]
    groups = find_groups(model, images).prunable
    table = time_layers(model, groups, images)
    whole = median_seconds(lambda: model(images), torch.device("cpu"))
    assert table.total({}) == pytest.approx(whole, rel=1e-6)
    for name in groups:
        totals = [table.total({name: share}) for share in (0, 0.2, 0.4, 0.6, 0.8)]
        assert totals == sorted(totals, reverse=True)


def test_the_table_is_arithmetic() -> None:
    factors = {
        "a": {"one": ((0.0, 0.5, 1.0), (1.0, 0.5, 0.1)), "two": ((0.0, 1.0), (1.0, 0.2))},
        "b": {"two": ((0.0, 1.0), (1.0, 0.0))},
    }
    table = LatencyTable({"one": 4.0, "two": 2.0}, factors, {"a": 3, "b": 1}, 1.0)
    assert table.total({}) == 7.0
    assert table.total({"a": 0.25}) == pytest.approx(4 * 0.75 + 2 * 0.8 + 1 * 0.8125)
    assert table.total({"a": 0.5, "b": 0.5}) == pytest.approx(4 * 0.5 + 2 * 0.6 * 0.5 + 0.5)


def test_networks_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that grows busier from call to call is no reason to call the second one slow."""
    calls: list[str] = []
    now = [0.0]

    class Busy(nn.Module):
        def __init__(self, name: str, seconds: float) -> None:
            super().__init__()
            self.name, self.seconds = name, seconds

        def forward(self, images: Tensor) -> Tensor:
            calls.append(self.name)
            now[0] += self.seconds * 1.02 ** len(calls)
            return images

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(latency, "SHORTEST", 1e-9)
    timed = time_both(Busy("slow", 4.0), Busy("fast", 2.0), torch.zeros(2, 1), 2, 9)
    assert timed.ratio == pytest.approx(0.5, rel=0.05)
    assert timed.before > 2 * 4.0 * 0.5
    assert calls.count("slow") == calls.count("fast") == 18
    assert {"slow", "fast"} == {calls[0], calls[2]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.5, "latency_inputs": data()[0][0]}, "latency_inputs does nothing with ratio"),
        (
            {"keep_latency": 0.5, "criterion": "oracle", "allocation": "myopic"},
            "keep_latency is predicted for whole widths",
        ),
        ({"keep_latency": 2}, "keep_latency=2 must be a share kept"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SelectorError, match=message):
        prune(small("plain"), data(), **{"criterion": "l1", **options})  # type: ignore[arg-type]


def test_a_latency_that_cannot_be_met(by_work: None) -> None:
    with pytest.raises(SelectorError, match=r"keeping 1.0% of the latency cannot be met.*allow"):
        choose(small("plain", 24), data(), criterion="l1", keep_latency=0.01)


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    """Drawn 4,000 times from a skewed distribution whose median is known."""
    chance = np.random.default_rng(0)
    for count, least in ((9, 0.94), (15, 0.94), (40, 0.94)):
        drawn = chance.exponential(size=(4000, count))
        ends = [median_interval(row.tolist()) for row in drawn]
        held = np.mean([low <= np.log(2) <= high for low, high in ends])
        assert least <= held <= 0.99, count
