"""Verification: what is tried, against a slow twin; what is measured to be worse is not taken."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from selector.data.calibration import Calibration
from selector.data.loss import evaluate
from selector.learning.selector import SaliencySelector
from selector.network.batchnorm import LEAST_BATCH, batch_statistics, recalibrate_batchnorm
from selector.network.compensation import removed
from selector.network.groups import Group
from selector.network.tracing import find_groups
from selector.planning.candidates import Trial, survey_network
from selector.planning.choice import Choice
from selector.planning.choose import choose, first_stage
from selector.planning.criteria import SelectorCriterion, Verify
from selector.planning.limits import Limits
from selector.planning.plan import Plan
from selector.planning.target import Target
from selector.planning.verification import AT_STAKE, Verifier, most_damaging
from selector.pruning.apply import apply_plan
from tests.networks import data, small, state_of

Batches = list[tuple[Tensor, Tensor]]


def surveyed(
    model: nn.Module, batches: Batches, verify: Verify, *, recalibrate: bool = False
) -> tuple[Trial, dict[Group, list[Choice]]]:
    """What verification starts from when every group loses a third of its channels."""
    criterion = SelectorCriterion(SaliencySelector.shipped(), verify)
    calibration = Calibration(batches)
    stage = first_stage(model, calibration, Target("channels", 0.67), Limits())
    survey = survey_network(model, calibration, stage, criterion)
    groups = stage.groups.prunable.values()
    options = criterion.options(survey, {group: group.channels // 3 for group in groups})
    return Trial(model=model, survey=survey, recalibrate=recalibrate), options


def loss_of(model: nn.Module, batches: Batches, choices: Sequence[tuple[Group, Choice]]) -> float:
    with removed(model, [(group, choice.remove) for group, choice in choices]):
        return evaluate(model, batches).loss


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("verify", [2, 3, "all"])
def test_candidates_are_tried_in_the_whole_plan(verify: Verify, seed: int) -> None:
    model, batches = small("plain", 12), data(24, 4, seed=seed)
    untouched = state_of(model)
    trial, options = surveyed(model, batches, verify)
    verifier = Verifier(trial, verify)
    found = dict(zip(options, verifier.best(options), strict=True))
    assert state_of(model) == untouched
    # The slow twin.
    best, tried = {group: some[0] for group, some in options.items()}, 1
    count, share = (None, 1.0) if verify == "all" else (verify, AT_STAKE)
    for group in most_damaging(options, share):
        trials = {loss_of(model, batches[1::2], list(best.items())): best[group]}
        for option in options[group][1:count]:
            trials[loss_of(model, batches[1::2], list({**best, group: option}.items()))] = option
            tried += 1
        best[group] = trials[min(trials)]
    assert {g: c.remove for g, c in found.items()} == {g: c.remove for g, c in best.items()}
    assert verifier.images == 12 * tried
    first = [(group, some[0]) for group, some in options.items()]
    change = loss_of(model, batches[1::2], list(found.items())) - loss_of(
        model, batches[1::2], first
    )
    against = [c.against_trusted.nats for c in found.values() if c.against_trusted is not None]
    assert len(against) == len([g for g in most_damaging(options, share) if len(options[g]) > 1])
    assert sum(against) == pytest.approx(change, rel=1e-6, abs=1e-12)
    assert max(against) <= 0


@pytest.mark.parametrize("verify", [1, 2])
def test_the_whole_plan_is_measured(verify: int) -> None:
    model, batches = small("plain", 12), data(24, 4)
    plan, trusted = (choose(model, batches, ratio=0.3, verify=v) for v in (verify, 0))
    before = evaluate(model, batches[1::2]).loss
    after = evaluate(apply_plan(model, plan, batches), batches[1::2]).loss
    assert plan.measured is not None
    assert plan.measured.nats == pytest.approx(after - before, rel=1e-9)
    assert plan.measured.images == 12
    assert f"measured: loss {plan.measured.nats:+.4f}" in str(plan)
    assert Plan.from_json(plan.to_json()) == plan
    assert (trusted.measured, trusted.oracle_images) == (None, 0)
    if verify == 1:
        assert plan.removals == trusted.removals
        assert plan.oracle_images == 2 * 12


def test_the_most_damaging_groups_are_verified_until_enough_is_at_stake() -> None:
    model, batches = small("plain", 12), data(24, 4)
    _, options = surveyed(model, batches, 3)
    first, second = options

    def dear(*nats: float) -> list[Group]:
        some = {
            group: [replace(options[group][0], predicted_nats=value)]
            for group, value in zip((first, second), nats, strict=True)
        }
        assert set(most_damaging(some, 1.0)) == {first, second}
        return most_damaging(some, AT_STAKE)

    assert dear(0.1, 0.9) == [second]
    assert dear(0.9, 0.1) == [first]
    assert dear(-1.0, 0.2) == [second]
    assert dear(0.0, -0.2) == [first]


def test_losses_are_those_that_recalibration_will_leave() -> None:
    # One batch, so that its own statistics are all that recalibration sees.
    (batch,) = data(64, 64)
    model, batches = small("plain", 12, norm=True), [batch, batch]
    trial, options = surveyed(model, batches, 1, recalibrate=True)
    chosen = {group: some[0] for group, some in options.items()}
    plain = Verifier(replace(trial, recalibrate=False), 1)._losses(chosen)
    found = Verifier(trial, 1)._losses(chosen).mean()
    plan = choose(model, batches, ratio=0.33)
    plan = replace(plan, choices=tuple(chosen.values()))
    smaller = apply_plan(model, plan, batches)
    assert float(plain.mean()) == pytest.approx(evaluate(smaller, batches).loss, rel=1e-9)
    recalibrate_batchnorm(smaller, batches)
    left = evaluate(smaller, batches).loss
    # Running variances are unbiased, a batch's own are not: all but the same.
    assert float(found) == pytest.approx(left, rel=1e-2)
    assert abs(float(found) - left) < 0.05 * abs(float(plain.mean()) - left)


def test_small_batches_have_no_statistics_to_go_by() -> None:
    model = small("plain", 12, norm=True)
    chosen = []
    for size in (LEAST_BATCH - 1, LEAST_BATCH):
        trial, options = surveyed(model, data(2 * size, size), 1, recalibrate=True)
        first = {group: some[0] for group, some in options.items()}
        kept = Verifier(trial, 1)._losses(first)
        plain = Verifier(replace(trial, recalibrate=False), 1)._losses(first)
        chosen.append(torch.equal(kept.batches, plain.batches))
    assert chosen == [True, False]


@pytest.mark.parametrize("norm", [False, True])
def test_the_layers_statistics_are_not_touched(norm: bool) -> None:
    model, ((images, _), *_) = small("plain", 8, norm=norm).eval(), data(32, 32)
    before, untouched = model(images), state_of(model)
    with batch_statistics(model):
        assert torch.equal(model(images), before) == (not norm)
    assert state_of(model) == untouched
    assert torch.equal(model(images), before)
    assert find_groups(model, images).prunable
