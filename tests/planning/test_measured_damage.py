"""Measured damage spends the budget where channels are superfluous, labels or none."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import selector
from selector.data.calibration import Calibration
from selector.data.sampling import split_images
from selector.learning.damage_curve import rungs
from selector.network import folding
from selector.network.compensation import shifted
from selector.network.copying import copy_of
from selector.network.folding import Prediction, folded
from selector.network.groups import Group
from selector.network.surgery import cuts_of, outputs_gone, temporarily_cut
from selector.network.tracing import find_groups
from selector.oracle.oracle import Oracle
from selector.planning import measured_damage
from selector.planning.allocation import allocate_by_damage
from selector.planning.candidates import Trial
from selector.planning.choose import surveyed
from selector.planning.measured_damage import Ladder, LeastMeasuredDamage
from selector.planning.method import method_of
from selector.planning.stage import Stage
from selector.planning.target import Target
from tests.networks import data, small
from tests.stages import stage_before

Batch = tuple[Tensor, Tensor | None]


def doubled() -> nn.Module:
    """The channels of its second layer come in pairs that are copies; those of the first do not."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 6)
    )
    second = model[2]
    with torch.no_grad():
        second.weight[6:] = second.weight[:6]
        second.bias[6:] = second.bias[:6]
    return model.eval()


def images_for(count: int = 96, size: int = 48) -> list[Batch]:
    torch.manual_seed(1)
    return [(torch.randn(size, 16), torch.arange(size) % 6) for _ in range(count // size)]


def prepared(
    model: nn.Module, batches: list[Batch], criterion: str = "reconstruction", keep: float = 0.6
) -> tuple[Stage, Trial, "selector.planning.candidates.Criterion"]:
    target = Target.of({"keep_macs": keep})
    calibration = Calibration(batches)
    stage = stage_before(model, calibration, keep)
    method = method_of(criterion, target, allocation="measured")
    survey = surveyed(model, calibration, stage, method)
    return stage, Trial(model=model, survey=survey, recalibrate=True), method.criterion


@pytest.mark.parametrize("labelled", [True, False])
def test_what_is_superfluous_goes(labelled: bool) -> None:
    batches = [(inputs, labels if labelled else None) for inputs, labels in images_for()]
    plan = selector.choose(
        doubled(), batches, criterion="reconstruction", allocation="measured", keep_macs=0.7
    )
    lost = {name: len(channels) for name, channels in plan.removals.items()}
    assert lost.get("2", 0) == 6
    assert lost.get("0", 0) <= 1
    assert "measured damage" in plan.criterion


def test_labels_are_not_read() -> None:
    plans = [
        selector.choose(
            doubled(), batches, criterion="reconstruction", allocation="measured", keep_macs=0.6
        ).removals
        for batches in (
            images_for(),
            [(inputs, (labels + 1) % 6) for inputs, labels in images_for() if labels is not None],
        )
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_curves_are_those_of_the_slow_twin(kind: str) -> None:
    """Every count cut and folded for real, the divergence read from the outputs."""
    model, batches = small(kind, 8), data(64, 16)
    stage, trial, criterion = prepared(model, batches)
    ladder, steps = measured_whole(stage, trial, criterion)
    seen, others = batches[:2], batches[2:]
    prediction = Prediction.measured(model, others, stage.groups.prunable.values())
    for name, curve in ladder.curves(steps).items():
        group, highest = stage.groups.prunable[name], 0.0
        for count, damage in list(curve.items())[1:]:
            gone = criterion.options(trial.survey, {group: count})[group][0].remove
            folds, shifts = prediction.of(model, group, gone)
            cuts = cuts_of([(group, gone)])
            total = 0.0
            with torch.no_grad():
                for inputs, _ in seen:
                    whole = model(inputs)
                    with (
                        temporarily_cut(model, [(group, gone)]),
                        folded(model, folds, cuts),
                        shifted(model, shifts, outputs_gone(cuts)),
                    ):
                        left = model(inputs)
                    total += divergence(left, whole)
            highest = max(highest, total / 32 / count)
            assert damage == pytest.approx(highest * count, rel=1e-3, abs=1e-6)


def measured_whole(
    stage: Stage, trial: Trial, criterion: "selector.planning.candidates.Criterion"
) -> tuple[Ladder, dict[Group, list[int]]]:
    """Every step of every group measured."""
    ladder = Ladder()
    steps = {
        stage.groups.prunable[name]: rungs(
            stage.options(name), stage.groups.prunable[name].channels
        )
        for name in stage.free
    }
    all_go = {group.name: group.channels for group in steps}
    while wanted := ladder.missing(steps, all_go):
        ladder.climb(stage, trial, criterion, wanted)
    return ladder, steps


@pytest.mark.parametrize("kind", ["plain", "residual", "grouped"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.8])
def test_widths_are_those_that_all_measurements_lead_to(kind: str, keep: float) -> None:
    """Steps that the budget does not reach are not measured."""
    model, batches = small(kind, 16), data(64, 16)
    stage, trial, criterion = prepared(model, batches, keep=keep)
    lazy = LeastMeasuredDamage().allocate(stage, trial, criterion)
    ladder, steps = measured_whole(stage, trial, criterion)
    assert lazy.counts == allocate_by_damage(stage, ladder.curves(steps), wary=False)
    if keep == 0.8:
        assert lazy.oracle_images < ladder.images


def divergence(outputs: Tensor, reference: Tensor, temperature: float = 2.0) -> float:
    logs, wanted = (functional.log_softmax(x / temperature, 1) for x in (outputs, reference))
    return float(temperature**2 * functional.kl_div(logs, wanted, log_target=True, reduction="sum"))


def test_steps_of_one_survey_are_measured_once() -> None:
    stage, trial, criterion = prepared(doubled(), images_for())
    allocation = LeastMeasuredDamage()
    more = allocation.allocate(stage, trial, criterion)
    some = allocation.allocate(replace(stage, share=0.5), trial, criterion)
    assert more.oracle_images > some.oracle_images == 0
    assert sum(more.counts.values()) > sum(some.counts.values()) > 0
    other = replace(trial, survey=replace(trial.survey))
    assert allocation.allocate(stage, other, criterion).oracle_images == more.oracle_images


def test_the_images_that_widths_cost_are_reported() -> None:
    plan = selector.choose(
        doubled(), images_for(), criterion="reconstruction", allocation="measured", keep_macs=0.7
    )
    # One channel of either group, and then more of the one that is full of copies.
    assert plan.oracle_images % 32 == 0
    assert plan.oracle_images >= 32 * (3 + 2)


def test_a_network_that_gives_losses_alone_is_priced_by_them() -> None:
    """By labels that it gives itself: no removal can lower their loss by much."""
    model = doubled()
    named = [{"x": inputs, "y": model(inputs).argmax(1)} for inputs, _ in images_for(192)]

    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch["x"]), batch["y"])

    plan = selector.choose(
        model,
        named,
        criterion="reconstruction",
        allocation="measured",
        keep_macs=0.7,
        forward=loss,
    )
    lost = {name: len(channels) for name, channels in plan.removals.items()}
    assert lost.get("2", 0) > lost.get("0", 0)


def test_a_network_of_one_batch_size_is_measured_on_whole_batches() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = doubled()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.body(inputs.reshape(96, 16))

    model = Fixed().eval()
    result = selector.prune(
        model,
        images_for(192, 96),
        criterion="reconstruction",
        allocation="measured",
        keep_macs=0.8,
        rounds=1,
    )
    assert set(result.plan.removals) == {"body.2"}
    assert find_groups(copy_of(result.model), images_for(192, 96)[0][0]).prunable["body.2"]


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5).filter(lambda s: sum(s) > 1),
    count=st.integers(1, 30),
)
def test_the_two_parts_are_all_images_once(sizes: list[int], count: int) -> None:
    numbers = torch.arange(sum(sizes))
    batches = [(part[:, None], part) for part in numbers.split(sizes)]
    first, others = split_images(batches, count)
    assert [len(x) for x, _ in first][1:] == sizes[1 : len(first)]
    for _ in range(2):  # As often as one likes.
        parts = [*first, *others]
        assert torch.equal(torch.cat([labels for _, labels in parts]), numbers)
        assert torch.equal(torch.cat([inputs for inputs, _ in parts])[:, 0], numbers)
    held = sum(len(labels) for _, labels in first)
    assert held >= min(count, sum(sizes) // 2)
    assert held - len(first[-1][1]) < count


@pytest.mark.parametrize("count", [2, 7, 15])
def test_a_handful_of_images_is_enough(count: int) -> None:
    (batch,) = images_for(count, count)
    plan = selector.choose(doubled(), [batch], criterion="l1", allocation="measured", keep_macs=0.8)
    assert plan.removals


def test_a_group_that_cannot_get_smaller_is_left_alone() -> None:
    torch.manual_seed(0)
    narrow = nn.Sequential(
        nn.Linear(16, 2), nn.Tanh(), nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 6)
    ).eval()
    plan = selector.choose(
        narrow,
        images_for(),
        criterion="l1",
        allocation="measured",
        keep_macs=0.8,
        min_channels=2,
    )
    assert set(plan.removals) == {"2"}


@pytest.mark.parametrize("kept", [True, False])
def test_groups_that_do_not_fit_the_memory_are_measured_in_parts(
    monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Once where what they predict fits the memory, else again for every step of the ladder."""
    stage, trial, criterion = prepared(small("residual", 8), data(64, 16))
    calls = []
    measure = Prediction.measured
    monkeypatch.setattr(
        Prediction,
        "measured",
        lambda *args: calls.append(len(args[2])) or measure(*args),  # type: ignore[func-returns-value]
    )
    together, steps = measured_whole(stage, trial, criterion)
    assert calls == [len(steps)]
    monkeypatch.setattr(measured_damage, "MEMORY_BYTES", 1)
    if not kept:
        monkeypatch.setattr(measured_damage, "KEPT_BYTES", 0)
    apart, _ = measured_whole(stage, trial, criterion)
    assert {*calls[1:]} == {1}
    assert len(calls) - 1 >= len(steps) > 1
    assert (len(calls) - 1 == len(steps)) == kept
    for name, damages in together.damages.items():
        assert apart.damages[name] == pytest.approx(damages, rel=1e-6)


def test_single_precision_of_wide_groups_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, trial, criterion = prepared(small("residual", 8), data(64, 16))
    exact, _ = measured_whole(stage, trial, criterion)
    monkeypatch.setattr(folding, "DOUBLE", 1)
    rounded, _ = measured_whole(stage, trial, criterion)
    assert rounded.damages != exact.damages
    for name, damages in exact.damages.items():
        assert rounded.damages[name] == pytest.approx(damages, rel=1e-3)


def test_batches_that_do_not_fit_the_memory_are_taken_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Into parts whose own statistics can still be read, and as little as is needed."""
    model, batches = small("plain", 8, norm=True), data(128, 64)
    stage, trial, criterion = prepared(model, batches)
    sizes = []
    measure = Oracle.measure

    def seen(self: Oracle, model: nn.Module, images: Calibration, *args: Any, **more: Any) -> Any:
        sizes.append([len(inputs) for inputs, _ in images])
        return measure(self, model, images, *args, **more)

    monkeypatch.setattr(Oracle, "measure", seen)
    whole = LeastMeasuredDamage().allocate(stage, trial, criterion)
    assert {tuple(found) for found in sizes} == {(32,)}
    sizes.clear()
    monkeypatch.setattr(measured_damage, "VALUES_BYTES", 1)
    apart = LeastMeasuredDamage().allocate(stage, trial, criterion)
    assert {tuple(found) for found in sizes} == {(16, 16)}
    assert apart.counts.keys() == whole.counts.keys()
