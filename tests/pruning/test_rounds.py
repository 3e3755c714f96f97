"""Rounds: how many, what they keep of removed channels, when they step back, and what is lost."""

import logging
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from selector.data.forward import evaluating
from selector.data.loss import evaluate
from selector.errors import SelectorError
from selector.learning.prediction import Prediction
from selector.learning.selector import SaliencySelector
from selector.learning.table import Described
from selector.network.batchnorm import recalibrate_batchnorm
from selector.network.compensation import Compensation, removed
from selector.network.masking import masked
from selector.network.tracing import find_groups
from selector.planning.choose import choose
from selector.planning.expectation import Logits, classes_said, expect
from selector.planning.limits import Widths
from selector.planning.plan import Plan
from selector.planning.target import Target
from selector.pruning.apply import apply_plan
from selector.pruning.procedure import default_rounds
from selector.pruning.prune import prune
from selector.pruning.result import PruningError
from tests.networks import STYLES, data, small, state_of


@pytest.mark.parametrize(("repaired", "left"), [(False, 0.9), (True, 0.7)])
@pytest.mark.parametrize("keep", [0.95, 0.9, 0.7, 0.5, 0.3, 0.1])
def test_a_round_takes_a_tenth_of_what_is_left_or_three_with_repair(
    keep: float, repaired: bool, left: float
) -> None:
    rounds = default_rounds(Target("macs", keep), Widths({}, 0.9, 1), repaired=repaired)
    assert keep ** (1 / rounds) >= left - 1e-9
    assert rounds == 1 or keep ** (1 / (rounds - 1)) < left


def test_rounds_by_default_and_by_hand() -> None:
    model = small("plain", 12)
    assert len(prune(model, data(), criterion="l1", keep_macs=0.7).rounds) == 1
    assert len(prune(model, data(), criterion="l1", keep_macs=0.7, repair=False).rounds) == 4
    assert len(prune(model, data(), criterion="l1", keep_macs=0.7, rounds=2).rounds) == 2
    assert len(prune(model, data(), criterion="l1", ratios={"stem": 0.5}).rounds) == 2
    result = prune(model, data(), criterion="l1", keep_macs=0.7, repair=False)
    losses = [plan.outcome.loss for plan in result.rounds if plan.outcome is not None]
    assert losses[-1] == pytest.approx(evaluate(result.model, data()).loss, rel=1e-9)
    assert [step.loss for step in result.report.steps] == losses
    assert result.report.steps[-1].macs_kept == pytest.approx(
        result.report.macs[1] / result.report.macs[0]
    )


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_masked_is_physical_when_compensated(style: str, norm: bool) -> None:
    model, batches = small(style, 6, norm=norm), data()
    plan = choose(model, batches, criterion="l1", ratio=0.4)
    groups = find_groups(model, batches[0][0]).prunable
    kept = Compensation.measured(model, batches, groups.values())
    untouched = state_of(model)
    with removed(model, [(groups[n], gone) for n, gone in plan.removals.items()], kept):
        promised = model(batches[1][0])
    assert state_of(model) == untouched
    smaller = apply_plan(model, plan, batches, compensate=True)
    assert torch.allclose(smaller(batches[1][0]), promised, rtol=1e-9)
    plain = apply_plan(model, plan, batches)
    assert not torch.allclose(plain(batches[1][0]), promised, rtol=1e-4)


def test_means_are_measured_anew_in_every_round() -> None:
    model, batches = small("plain", 8), data()
    options = {"criterion": "l1", "ratio": 0.5, "repair": False}
    result = prune(model, batches, rounds=2, compensate=True, **options)  # type: ignore[arg-type]
    first, second = result.rounds
    step = apply_plan(model, first, batches, compensate=True)
    step = apply_plan(step, second, batches, compensate=True)
    for name, tensor in step.state_dict().items():
        torch.testing.assert_close(tensor, result.model.state_dict()[name])
    frozen = apply_plan(model, result.plan, batches, compensate=True)
    assert not torch.allclose(frozen.head.bias, result.model.head.bias, rtol=1e-6)


def test_a_constant_channel_costs_nothing_when_compensated() -> None:
    model, batches = small("flatten", 6), data()
    model.hidden.weight.data[2] = 0
    model.hidden.bias.data[2] = 0.7
    before = evaluate(model, batches).loss
    plan = choose(model, batches, criterion="l1", ratios={"hidden": 0.15})
    assert plan.removals == {"hidden": (2,)}
    assert evaluate(apply_plan(model, plan, batches, compensate=True), batches).loss == (
        pytest.approx(before, rel=1e-9)
    )
    assert evaluate(apply_plan(model, plan, batches), batches).loss != pytest.approx(before)


def test_the_oracle_measures_what_compensation_leaves() -> None:
    model, batches = small("flatten", 6), data(12, 3)
    plan = choose(model, batches, criterion="oracle", ratio=0.5, compensate=True)
    assert all(choice.measured is not None for choice in plan.choices)
    # One group after the other, in the network that is left: the sum is that of the whole plan.
    kept = Compensation.measured(
        model, batches, find_groups(model, batches[0][0]).prunable.values()
    )
    groups = find_groups(model, batches[0][0]).prunable
    before = evaluate(model, batches[1::2]).loss
    with removed(model, [(groups[n], gone) for n, gone in plan.removals.items()], kept):
        after = evaluate(model, batches[1::2]).loss
    total = sum(choice.measured.nats for choice in plan.choices if choice.measured)
    assert total == pytest.approx(after - before, rel=1e-6)


@pytest.fixture
def doubtful(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The shipped selector, with intervals that end at what the list says."""
    highest = [-1e6]
    predict = SaliencySelector.predict_described

    def of_our_own(self: SaliencySelector, seen: Described) -> list[Prediction]:
        return [
            replace(
                found,
                loss_change_interval=dict.fromkeys(found.loss_change_interval, (-1e6, highest[0])),
            )
            for found in predict(self, seen)
        ]

    monkeypatch.setattr(SaliencySelector, "predict_described", of_our_own)
    return highest


@pytest.mark.parametrize("verify", [0, 2])
def test_a_step_is_halved_where_the_loss_leaves_the_interval(
    doubtful: list[float], verify: int
) -> None:
    model, batches = small("plain", 32), data(24, 4)  # Wide: each eighth takes channels.
    # Repaired after every cut: only then is the loss the one that was predicted.
    options = {
        "keep_macs": 0.6,
        "rounds": 2,
        "verify": verify,
        "allocation": "damage",
        "finetune": lambda *_: None,
    }
    result = prune(model, batches, **options)  # type: ignore[arg-type]
    outcomes = [plan.outcome for plan in result.rounds if plan.outcome is not None]
    # Twice at most in each round: eighths instead of halves, and the target is met even so.
    assert [outcome.halved for outcome in outcomes] == [2] * 8
    assert [outcome.share for outcome in outcomes] == [n / 8 for n in range(1, 9)]
    assert result.report.macs[1] <= 0.6 * result.report.macs[0]
    assert [step.halved for step in result.report.steps] == [2] * 8
    doubtful[0] = 1e6
    calm = prune(model, batches, **options)  # type: ignore[arg-type]
    assert [plan.outcome.halved for plan in calm.rounds if plan.outcome] == [0, 0]
    # What is looked at is the loss after the cut, which is measured anyway. With verification, what
    # is tried and not done is paid for: each of eight rounds three times.
    spent, least = result.report.oracle_images, calm.report.oracle_images
    assert spent > 3 * least if verify else spent == least == 0


@pytest.mark.parametrize("criterion", ["l1", "selector"])
def test_what_every_round_did_to_the_loss_is_reported(criterion: str) -> None:
    model, batches = small("plain", 12, norm=True), data(24, 4)
    losses = [evaluate(model, batches).loss]

    def look(network: nn.Module, number: int) -> None:
        losses.append(evaluate(network, batches).loss)

    options = {"criterion": criterion, "keep_macs": 0.6, "rounds": 3, "allocation": "damage"}
    result = prune(model, batches, finetune=look, **options)  # type: ignore[arg-type]
    rises = [step.measured_nats for step in result.report.steps]
    assert rises == pytest.approx([after - before for before, after in pairwise(losses)])
    assert [step.loss for step in result.report.steps] == pytest.approx(losses[1:])
    assert result.report.oracle_images == 0


def test_the_limit_of_the_loss_is_kept_and_said() -> None:
    model = small("plain", 16, norm=True)
    # Labels are what the network says, so that it can only get worse.
    batches = [(images, model(images).argmax(1)) for images, _ in data()]
    asked = {"criterion": "l1", "keep_macs": 0.3, "repair": False}
    free = prune(model, batches, **asked)
    base = evaluate(model, batches).loss
    limit = 0.4 * (evaluate(free.model, batches).loss - base)
    assert limit > 0
    result = prune(model, batches, max_loss_change=limit, **asked)
    assert evaluate(result.model, batches).loss - base <= limit
    assert 0.3 < result.report.macs[1] / result.report.macs[0] < 1
    assert f"max_loss_change={limit:.4g}" in str(result.report)
    assert result.plan.goal is not None
    assert result.plan.goal.got > result.plan.goal.asked
    none = prune(model, batches, max_loss_change=1e-12, **asked)
    assert none.plan.choices == ()
    assert none.report.after == none.report.before
    roomy = prune(model, batches, max_loss_change=1e6, **asked)
    assert roomy.plan.removals == free.plan.removals
    assert not any("target" in text for text in roomy.report.warnings)
    # What is compared with the limit is what repair leaves, so that more can go.
    repaired = prune(model, batches, max_loss_change=limit, criterion="l1", keep_macs=0.3)
    assert evaluate(repaired.model, batches).loss - base <= limit
    assert repaired.report.macs[1] < result.report.macs[1]


def test_no_number_any_more_is_rolled_back_with_nothing_lost() -> None:
    model, batches = small("plain", 12, norm=True), data()
    untouched = state_of(model)

    def diverge(network: nn.Module, number: int) -> None:
        if number == 3:
            network.next.weight.data[0] = torch.nan

    with pytest.raises(PruningError, match=r"round 3 was undone: the .* is NaN") as caught:
        prune(model, batches, criterion="l1", keep_macs=0.5, rounds=4, finetune=diverge)
    assert isinstance(caught.value, SelectorError)
    result = caught.value.result
    good = prune(model, batches, criterion="l1", keep_macs=0.5, rounds=4, finetune=lambda *_: None)
    assert result.rounds == good.rounds[:2]
    assert math.isfinite(evaluate(result.model, batches).loss)
    replayed = apply_plan(model, result.plan, batches)
    assert {n: t.shape for n, t in replayed.state_dict().items()} == {
        n: t.shape for n, t in result.model.state_dict().items()
    }
    assert state_of(model) == untouched


def test_a_finetuning_that_changes_shapes_is_refused() -> None:
    model = small("plain", 12)

    def widen(network: nn.Module, number: int) -> None:
        network.head = nn.Linear(network.head.in_features, 7).double()

    with pytest.raises(PruningError, match=r"changed 'head.weight' from shape .* in round"):
        prune(model, data(), criterion="l1", keep_macs=0.5, rounds=2, finetune=widen)


@pytest.mark.parametrize("value", [0, -0.1, float("nan")])
def test_a_limit_that_is_none(value: float) -> None:
    with pytest.raises(SelectorError, match=r"max_loss_change=.* must be above 0, in nats"):
        prune(small("plain"), data(), criterion="l1", ratio=0.5, max_loss_change=value)


def test_damage_is_foretold_before_the_first_cut(caplog: pytest.LogCaptureFixture) -> None:
    model, batches = small("plain", 12, norm=True), data(24, 4)
    plan = choose(model, batches, keep_macs=0.6)
    assert plan.expected is not None
    predicted = [c.predicted_nats for c in plan.choices if c.predicted_nats is not None]
    composing = SaliencySelector.shipped().composing_
    factor = 1.0 if composing is None else composing.middle
    assert plan.expected.loss_change_nats == pytest.approx(factor * sum(predicted))
    low, high = plan.expected.loss_change_interval
    assert low <= plan.expected.loss_change_nats <= high
    assert plan.expected.loss == pytest.approx(evaluate(model, batches).loss)
    assert plan.expected.accuracy == pytest.approx(evaluate(model, batches).accuracy)
    assert str(plan.expected) in str(plan)
    assert Plan.from_json(plan.to_json()) == plan
    with caplog.at_level(logging.INFO, "selector"):
        result = prune(model, batches, keep_macs=0.6)
    assert result.report.expected is not None
    *before, last = [record.getMessage() for record in caplog.records]
    assert last == str(result.report.expected)
    # What is suspicious about the images is said even before that.
    assert tuple(before) == result.report.warnings
    assert result.report.expected.rounds == len(result.rounds)
    assert str(result.report.expected) in str(result.report)
    assert prune(model, batches, criterion="l1", keep_macs=0.6).report.expected is None
    regression = choose(
        model, batches, keep_macs=0.6, loss=lambda outputs, targets: outputs.square().mean()
    )
    assert regression.expected is not None
    assert regression.expected.accuracy is None


def test_accuracy_falls_with_the_loss_and_is_exact_where_nothing_changes() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (400,), generator=generator)
    values = torch.randn(400, 10, generator=generator, dtype=torch.float64)
    values[torch.arange(400), labels] += 4
    logits = Logits(values, labels)
    shares = logits.after([-1.0, 0.0, 0.1, 0.5, 1.0, 2.0, 100.0])
    assert shares[0] == shares[1] == logits.accuracy
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(0.1, abs=0.03)
    expected = expect([0.1, 0.3], [(0.0, 0.2), (0.1, 0.9)], 0.5, logits)
    assert expected.loss_change_interval == pytest.approx((0.1, 1.1))
    assert expected.accuracy_interval is not None
    worst, best = expected.accuracy_interval
    assert worst < expected.accuracy_after < best  # type: ignore[operator]
    assert expected.alarming == (expected.accuracy_after < 0.9 * logits.accuracy)  # type: ignore[operator]


def test_a_disturbance_of_known_strength_is_told_from_its_loss() -> None:
    """Other noise of the assumed kind: its accuracy follows from its loss alone."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(5, (4000,), generator=generator)
    values = torch.randn(4000, 5, generator=generator, dtype=torch.float64)
    values[torch.arange(4000), labels] += 3
    noise = torch.randn(4000, 5, generator=generator, dtype=torch.float64) * values.std() * 0.7
    disturbed = 0.6 * values + 0.8 * noise
    entropy = nn.functional.cross_entropy
    rise = float(entropy(disturbed, labels) - entropy(values, labels))
    right = float((disturbed.argmax(1) == labels).double().mean())
    (told,) = Logits(values, labels).after([rise])
    assert told == pytest.approx(right, abs=0.03)


def test_what_is_said_of_classes_needs_classes() -> None:
    model, batches = small("plain"), data()
    found = classes_said(model, batches)
    assert found is not None
    assert found.accuracy == evaluate(model, batches).accuracy
    assert classes_said(model, [(x, y.double()) for x, y in batches]) is None


def test_recalibration_and_compensation_go_together() -> None:
    model, batches = small("plain", 8, norm=True), data()
    options = {"criterion": "l1", "rounds": 1, "ratio": 0.5, "compensate": True, "repair": False}
    plain = prune(model, batches, recalibrate=False, **options)  # type: ignore[arg-type]
    fresh = prune(model, batches, **options)  # type: ignore[arg-type]
    recalibrate_batchnorm(plain.model, batches)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, fresh.model.state_dict()[name])
    with pytest.raises(SelectorError, match=r"compensate=True.*allocation='myopic'"):
        prune(
            model,
            batches,
            criterion="oracle",
            allocation="myopic",
            compensate=True,
            keep_macs=0.9,
        )
    group = find_groups(model, batches[0][0]).prunable["stem"]
    with evaluating(model), masked(model, group, [0]):
        assert model(batches[0][0]).isfinite().all()
