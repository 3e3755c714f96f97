"""Plan, then apply: what was asked is what is done, and the caller's network stays as it was."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from selector.data.loss import evaluate
from selector.errors import SelectorError
from selector.learning.selector import SaliencySelector
from selector.network.batchnorm import recalibrate_batchnorm
from selector.network.checkpoint import load_pruned, save_pruned
from selector.network.costs import count_costs
from selector.network.masking import masked
from selector.network.tracing import find_groups
from selector.oracle.oracle import loss_changes
from selector.planning.choose import choose
from selector.planning.plan import Plan
from selector.pruning.apply import apply_plan
from selector.pruning.prune import prune
from selector.pruning.result import PruneResult
from selector.recording.record import record
from selector.saliency.registry import arms
from selector.saliency.scoring import lowest, score
from tests.networks import STYLES, Small, data, randomise, small, state_of

Batches = list[tuple[Tensor, Tensor]]


IMAGES = data(8, 4, shape=(3, 16, 16), dtype=torch.float32)


def chain() -> nn.Module:
    """Three convolutions with BatchNorm, of 8, 16 and 32 channels, for `IMAGES`."""
    layers: list[nn.Module] = []
    for before, after in ((3, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))
    return randomise(model, 11).eval()


@pytest.fixture(scope="module")
def fitted() -> SaliencySelector:
    """A selector that has seen two random networks: good enough to be obeyed."""
    records = record(small("two_consumers", 6, norm=True), data(9, 3), network="one")
    records = records + record(small("residual", 6, norm=True), data(9, 3), network="other")
    return SaliencySelector(folds=2, trees=10).fit(records)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def counted(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Costs as PyTorch counts them, without our own counting."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(images)
    convolutions = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    return {
        "keep_macs": counter.get_total_flops() / 2 / len(images),
        "keep_params": sum(p.numel() for p in model.parameters()),
        "keep_weights": sum(m.weight.numel() for m in convolutions),
    }


@pytest.mark.parametrize("target", ["keep_macs", "keep_params", "keep_weights"])
@pytest.mark.parametrize("style", STYLES)
def test_a_target_is_met_and_the_report_is_true(style: str, target: str) -> None:
    check_target(small(style, 8, norm=True), data(8, 4), target, 0.7)


def check_target(model: nn.Module, batches: Batches, target: str, keep: float) -> None:
    """The network keeps what was asked, to one channel, and the report says what is there."""
    groups = find_groups(model, batches[0][0])
    before = counted(model, batches[0][0])
    untouched = state_of(model)
    result = prune(model, batches, criterion="taylor", rounds=2, **{target: keep})
    assert state_of(model) == untouched
    after = counted(result.model, batches[0][0])
    measure = {"keep_macs": "macs", "keep_params": "parameters", "keep_weights": "weights"}[target]
    total = groups.costs.total(measure)  # type: ignore[arg-type]
    widest = max(
        1 - groups.costs.total(measure, {group: 1}) / total  # type: ignore[arg-type]
        for group in groups.prunable.values()
    )
    got = after[target] / before[target]
    assert got <= keep + 1e-9
    assert got >= keep - max(0.02, widest)
    report = result.report
    assert report.macs == pytest.approx((before["keep_macs"], after["keep_macs"]))
    assert report.parameters == (before["keep_params"], after["keep_params"])
    assert report.before == evaluate(model, batches)
    assert report.after == evaluate(result.model, batches)
    check_widths(model, result)


def outputs_of(layer: nn.Module) -> int:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.shape[1 if isinstance(layer, nn.ConvTranspose2d) else 0]


def check_widths(model: nn.Module, result: PruneResult) -> None:
    """The plan, the report and the layers tell the same story."""
    assert len(result.report.rows) == len(result.plan.choices)
    for row, choice in zip(result.report.rows, result.plan.choices, strict=True):
        layer = model.get_submodule(choice.group)
        smaller = result.model.get_submodule(choice.group)
        assert row.group == choice.group
        # A channel that grouped convolutions tie together is several of the layer's filters.
        filters, rest = divmod(outputs_of(layer), choice.channels)
        assert rest == 0
        assert row.channels_before == choice.channels
        assert row.channels_after == choice.channels - len(choice.remove)
        assert outputs_of(smaller) == row.channels_after * filters
        assert sum(count for _, count in row.trusted) == len(choice.remove)


@pytest.mark.parametrize("style", STYLES)
def test_the_plan_of_all_rounds_gives_the_same_network(style: str) -> None:
    check_plan_of_all_rounds(small(style, 8, norm=True), data(8, 4))


def check_plan_of_all_rounds(model: nn.Module, batches: Batches) -> None:
    """The plan, carried out at once, gives what the rounds gave."""
    result = prune(model, batches, criterion="fisher", rounds=3, recalibrate=False, keep_macs=0.7)
    at_once = apply_plan(model, result.plan, batches)
    assert shapes(at_once) == shapes(result.model)
    assert shapes(at_once) != shapes(model)
    state = result.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in at_once.state_dict().items())
    for name, removed in result.plan.removals.items():
        in_rounds = sum(len(plan.removals.get(name, ())) for plan in result.rounds)
        assert in_rounds == len(removed) == len(set(removed))


@pytest.mark.parametrize("criterion", ["selector", "oracle", "taylor", "l2", "random"])
def test_choose_touches_nothing_and_its_plan_travels(
    criterion: str, fitted: SaliencySelector, tmp_path: Path
) -> None:
    model, batches = small("two_consumers", 6, norm=True).train(), data()
    untouched = state_of(model)
    plan = choose(model, batches, criterion=criterion, selector=fitted, keep_macs=0.6)
    assert state_of(model) == untouched
    assert Plan.from_json(plan.to_json()) == plan
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert all(choice.group in str(plan) for choice in plan.choices)
    one = apply_plan(model, plan, batches).state_dict()
    other = apply_plan(model, Plan.load(tmp_path / "plan.json"), batches).state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert state_of(model) == untouched


def test_a_plan_is_carried_out_as_promised() -> None:
    model, batches = small("residual", 6, norm=True), data()
    plan = choose(model, batches, criterion="taylor", keep_params=0.6)
    smaller = apply_plan(model, plan, batches)
    images = batches[0][0]
    groups = find_groups(model, images).prunable
    contexts = [masked(model, groups[name], gone) for name, gone in plan.removals.items()]
    for context in contexts:
        context.__enter__()
    promised = model(images)
    for context in reversed(contexts):
        context.__exit__(None, None, None)
    assert torch.allclose(smaller(images), promised, rtol=1e-9)
    assert not torch.allclose(promised, model(images), rtol=1e-3)
    after = counted(smaller, images)
    assert (plan.macs_after, plan.parameters_after) == (after["keep_macs"], after["keep_params"])


@pytest.mark.parametrize("metric", ["l1", "taylor", "apoz"])
def test_a_metric_by_name_takes_its_lowest(metric: str) -> None:
    model, batches = small("two_consumers", 6), data()
    plan = choose(model, batches, criterion=metric, ratio=0.5)
    scores = score(model, batches)
    assert plan.choices
    for choice in plan.choices:
        assert choice.metric == metric
        assert choice.remove == lowest(scores[choice.group][metric], len(choice.remove))
        assert choice.runner_up is None
        assert choice.measured is None


def test_the_oracle_takes_the_candidate_with_the_lowest_loss() -> None:
    model, batches = small("flatten", 6), data(12, 3)
    plan = choose(model, batches, criterion="oracle", ratio=0.5, ignore=["hidden"])
    (choice,) = plan.choices
    count = len(choice.remove)
    scores = score(model, batches[0::2])["stem"]
    candidates = {lowest(values, count) for name, values in scores.items() if name in arms()}
    changes = loss_changes(model, batches[1::2], "stem", sorted(candidates))
    best = min(changes, key=lambda change: change.nats)
    assert choice.measured is not None
    assert choice.measured.nats == pytest.approx(best.nats, rel=1e-9)
    assert choice.remove == sorted(candidates)[changes.index(best)]
    assert plan.oracle_images == (len(candidates) + 1) * 6


def test_later_groups_are_measured_in_the_network_that_the_earlier_leave() -> None:
    model, batches = small("flatten", 6), data(12, 3)
    groups = find_groups(model, batches[0][0]).prunable
    first, second = choose(model, batches, criterion="oracle", ratio=0.5).choices
    assert (first.group, second.group) == ("stem", "hidden")
    (alone,) = loss_changes(model, batches[1::2], groups["hidden"], [second.remove])
    with masked(model, groups["stem"], first.remove):
        (given,) = loss_changes(model, batches[1::2], groups["hidden"], [second.remove])
    assert second.measured is not None
    assert second.measured.nats == pytest.approx(given.nats, rel=1e-9)
    assert second.measured.nats != pytest.approx(alone.nats, rel=1e-3)


@pytest.mark.parametrize("verify", [0, 2, "all"])
def test_prune_by_the_selector(verify: int | str, fitted: SaliencySelector) -> None:
    model, batches = small("two_consumers", 6, norm=True), data(12, 3)
    untouched = state_of(model)
    result = prune(
        model,
        batches,
        selector=fitted,
        rounds=2,
        verify=verify,  # type: ignore[arg-type]
        keep_macs=0.5,
    )
    assert state_of(model) == untouched
    assert (result.report.oracle_images > 0) == (verify != 0)
    assert result.report.oracle_images == sum(plan.oracle_images for plan in result.rounds)
    for row in result.report.rows:
        assert row.predicted_nats is not None
        assert row.measured_nats is None
    assert all(step.measured_nats is not None for step in result.report.steps)
    check_widths(model, result)


def test_fine_tuning_is_called_once_a_round_on_the_pruned_copy() -> None:
    model, batches = small("plain", 8), data()
    seen: list[tuple[int, int]] = []

    def finetune(smaller: nn.Module, number: int) -> None:
        assert smaller is not model
        seen.append((number, sum(p.numel() for p in smaller.parameters())))
        smaller.head.bias.data.fill_(float(number))

    result = prune(
        model, batches, criterion="l1", rounds=3, finetune=finetune, ratio=0.6, max_ratio=0.9
    )
    assert [number for number, _ in seen] == [1, 2, 3]
    sizes = [size for _, size in seen]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    assert torch.equal(result.model.head.bias, torch.full((5,), 3.0, dtype=torch.float64))


def test_frozen_parameters_and_modes_stay() -> None:
    model = small("plain", 6, norm=True).train()
    model.stem.weight.requires_grad_(False)
    model.norm.eval()
    result = prune(model, data(), criterion="l1", rounds=2, ratio=0.5)
    assert not result.model.stem.weight.requires_grad
    assert result.model.next.weight.requires_grad
    modes = {name: module.training for name, module in model.named_modules()}
    assert {name: module.training for name, module in result.model.named_modules()} == modes


@pytest.mark.parametrize("round_to", [2, 4])
@pytest.mark.parametrize("target", [{"ratio": 0.6}, {"keep_macs": 0.5}, {"keep_params": 0.6}])
def test_widths_are_multiples_where_anything_went(target: dict[str, float], round_to: int) -> None:
    model = chain()
    result = prune(model, IMAGES, criterion="l2", rounds=2, round_to=round_to, **target)  # type: ignore[arg-type]
    assert result.plan.choices
    for row in result.report.rows:
        assert row.channels_after % round_to == 0
        assert row.channels_after < row.channels_before


def test_no_group_loses_more_than_max_ratio_over_all_rounds() -> None:
    model, batches = chain(), IMAGES
    widths = {n: g.channels for n, g in find_groups(model, batches[0][0]).prunable.items()}
    result = prune(model, batches, criterion="l2", rounds=4, max_ratio=0.25, keep_macs=0.65)
    for name, removed in result.plan.removals.items():
        assert 0 < len(removed) <= 0.25 * widths[name]
    with pytest.raises(SelectorError, match="raise max_ratio"):
        prune(model, batches, criterion="l2", max_ratio=0.25, keep_macs=0.3)


@pytest.mark.parametrize("name", ["stem", "back"])
def test_an_ignored_group_keeps_all_its_channels(name: str) -> None:
    model, batches = small("residual", 6), data()
    assert "stem" in choose(model, batches, criterion="l1", ratio=0.5).removals
    result = prune(model, batches, criterion="l1", rounds=2, ratio=0.5, ignore=[name])
    assert result.model.stem.out_channels == result.model.back.out_channels == 6
    assert result.model.inner.out_channels < 7
    assert ("stem", "ignored, as asked") in result.report.refused


@pytest.mark.parametrize("style", STYLES)
def test_a_pruned_network_comes_back_bit_for_bit(style: str, tmp_path: Path) -> None:
    model = small(style, 8, norm=True)
    check_file(model, lambda: Small(style, 8, norm=True).double(), data(8, 4), tmp_path)


def check_file(
    model: nn.Module, build: Callable[[], nn.Module], batches: Batches, folder: Path
) -> None:
    """Saved and loaded into the user's own class, the pruned network computes the same."""
    smaller = prune(model, batches, criterion="taylor", rounds=1, keep_params=0.7).model.eval()
    save_pruned(smaller, folder / "small.safetensors")
    loaded = load_pruned(build, folder / "small.safetensors").eval()
    assert type(loaded) is type(model)
    assert shapes(loaded) == shapes(smaller) != shapes(model)
    images = batches[0][0]
    assert torch.equal(loaded(images), smaller(images))
    assert [p.name for p in folder.iterdir()] == ["small.safetensors"]


def test_a_save_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SelectorError, match="cannot be written"):
        save_pruned(small("plain"), tmp_path / "no such folder" / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_recalibration_is_the_statistics_of_all_the_images() -> None:
    model, batches = small("plain", 5, norm=True).train(), data(12, 4)
    model.norm.momentum = 0.3
    expected = copy.deepcopy(model)
    maps = [expected.stem(images) for images, _ in batches]
    assert recalibrate_batchnorm(model, batches) == 1
    whole = torch.cat(maps)
    assert torch.allclose(model.norm.running_mean, whole.mean((0, 2, 3)))
    assert torch.allclose(model.norm.running_var, whole.var((0, 2, 3), unbiased=True))
    assert model.norm.momentum == 0.3
    assert model.training
    assert model.norm.training


def test_recalibration_touches_statistics_alone() -> None:
    model = small("residual", 5, norm=True)
    kept = {name: p.clone() for name, p in model.named_parameters()}
    statistics = model.norm.running_mean.clone()
    recalibrate_batchnorm(model, data())
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters())
    assert not torch.equal(model.norm.running_mean, statistics)
    assert not any(module.training for module in model.modules())
    once = model.norm.running_mean.clone()
    recalibrate_batchnorm(model, data())
    assert torch.equal(model.norm.running_mean, once)


def test_without_batchnorm_nothing_is_recalibrated() -> None:
    model = small("plain")
    before = state_of(model)
    assert recalibrate_batchnorm(model, data()) == 0
    assert state_of(model) == before


def test_recalibration_is_part_of_pruning_unless_told_otherwise() -> None:
    model, batches = small("plain", 6, norm=True), data()
    options = {"criterion": "l1", "rounds": 1, "ratio": 0.5, "repair": False}
    plain = prune(model, batches, recalibrate=False, **options)  # type: ignore[arg-type]
    fresh = prune(model, batches, **options)  # type: ignore[arg-type]
    assert shapes(plain.model) == shapes(fresh.model)
    recalibrate_batchnorm(plain.model, batches)
    assert torch.equal(plain.model.norm.running_mean, fresh.model.norm.running_mean)
    assert torch.equal(plain.model.norm.running_var, fresh.model.norm.running_var)


def test_the_report_judges_on_the_images_that_it_is_given(tmp_path: Path) -> None:
    model, batches, tests = small("plain", 6), data(), data(6, 3, seed=5)
    result = prune(model, batches, criterion="l1", rounds=1, ratio=0.5, test_batches=tests)
    report = result.report
    assert report.before == evaluate(model, tests)
    assert report.after == evaluate(result.model, tests) != report.before
    assert report.images_from == "test images"
    assert json.loads(report.to_json())["rounds"] == 1
    report.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for row in report.rows:
        assert row.group in page
        assert row.group in str(report)


def test_the_same_call_gives_the_same_network() -> None:
    model, batches = small("two_consumers", 6, norm=True), data()
    one, other = (
        prune(model, batches, criterion="taylor", rounds=2, ratio=0.5).model.state_dict()
        for _ in "12"
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_round_in_which_nothing_is_left_to_do_is_no_error() -> None:
    """Steps of eight channels: the first round meets the target, the others remove nothing."""
    model = chain()
    result = prune(model, IMAGES, criterion="taylor", rounds=4, round_to=8, keep_params=0.95)
    assert [bool(plan.choices) for plan in result.rounds].count(True) == 1
    check_widths(model, result)


def test_an_edited_plan_is_carried_out_as_edited() -> None:
    model, batches = small("plain", 6), data()
    plan = choose(model, batches, criterion="l1", ratio=0.3)
    edited = replace(plan, choices=(replace(plan.choices[0], remove=(5,)),))
    smaller = apply_plan(model, edited, batches)
    assert torch.equal(smaller.stem.weight, model.stem.weight[:5])
    assert smaller.next.out_channels == model.next.out_channels


@pytest.mark.parametrize(
    ("width", "options"),
    [
        (4, {"ratio": 0.05}),
        (5, {"ratio": 0.5, "round_to": 8}),
        (10, {"ratio": 0.95, "max_ratio": 0.5}),
    ],
    ids=["too small for a channel", "no multiple below", "beyond max_ratio"],
)
def test_a_ratio_that_is_not_met_is_said(width: int, options: dict[str, float]) -> None:
    with pytest.raises((SelectorError, UserWarning), match="ratio"):
        prune(small("plain", width), data(), criterion="l1", rounds=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("rounds", [1, 3])
def test_damage_decides_where_channels_go(fitted: SaliencySelector, rounds: int) -> None:
    model, batches = small("two_consumers", 8, norm=True), data()
    result = prune(
        model, batches, selector=fitted, allocation="damage", rounds=rounds, keep_macs=0.7
    )
    before, after = (count_costs(m, batches[0][0]).total("macs") for m in (model, result.model))
    groups = find_groups(model, batches[0][0]).prunable.values()
    assert after <= 0.7 * before
    assert after >= 0.7 * before - max(group.macs_per_channel for group in groups)
    assert "allocation by damage" in str(result.report)
