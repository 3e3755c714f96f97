"""The myopic composition equals a slow twin; groups shrink as if they were traced anew."""

import copy
import random
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from selector.data.loss import evaluate
from selector.data.sampling import drawn_from
from selector.errors import SelectorError
from selector.network.compensation import apply_shifts, find_absorbers, measure_means, shifts_of
from selector.network.groups import Group
from selector.network.reindexing import shrink, shrink_all
from selector.network.surgery import apply_cuts, cuts_of
from selector.network.tracing import Groups, find_groups, retrace_groups
from selector.planning.choose import choose
from selector.planning.composition.compose import Step, compose_myopically, of_convolutions
from selector.planning.composition.myopic import FOUNDING_METRICS, Myopic, nominate
from selector.pruning.apply import apply_plan
from selector.pruning.prune import prune
from selector.saliency.registry import METRICS
from selector.statistics.collect import measure_signals
from tests.networks import STYLES, data, small, small_networks, state_of

Batches = list[tuple[Tensor, Tensor]]


def some_removals(groups: Groups, chance: random.Random) -> list[tuple[Group, list[int]]]:
    return [
        (group, chance.sample(range(group.channels), chance.randint(1, group.channels - 1)))
        for group in groups.prunable.values()
        if chance.random() < 0.7
    ]


def check_shrinking(model: nn.Module, images: Tensor, seed: int) -> None:
    """Cut twice: what arithmetic says of the groups is what a new trace says."""
    chance = random.Random(seed)
    model = copy.deepcopy(model)
    known = find_groups(model, images)
    for _ in range(2):
        removals = some_removals(known, chance)
        mine, costs = shrink(known.prunable, removals), shrink_all(known, removals)
        apply_cuts(model, cuts_of(removals))
        traced = retrace_groups(model, images, known)
        # One channel each side of a grouped convolution is depthwise: traced as another group.
        expected = {name: g for name, g in traced.prunable.items() if g.channels > 1}
        assert mine.keys() == costs.prunable.keys() == expected.keys()
        for name, group in expected.items():
            assert mine[name].channels == group.channels
            assert set(mine[name].slices) == set(group.slices)
            for attribute in ("macs_per_channel", "parameters_per_channel"):
                counted = getattr(group, attribute)
                assert getattr(costs.prunable[name], attribute) == pytest.approx(counted, rel=1e-9)
        for measure in ("macs", "parameters", "weights"):
            total = traced.costs.total(measure)  # type: ignore[arg-type]
            assert costs.costs.total(measure) == pytest.approx(total, rel=1e-9)  # type: ignore[arg-type]
        known = costs


@settings(deadline=None, max_examples=25)
@given(model=small_networks(), seed=st.integers(0, 1000))
def test_groups_shrink_as_if_traced_anew(model: nn.Module, seed: int) -> None:
    check_shrinking(model, data()[0][0], seed)


def slow_step(model: nn.Module, images: Batches, how: Myopic) -> list[tuple[str, int]]:
    """One step in loops: score, take turns, cut copies, compare; what goes, in today's numbers."""
    signals = measure_signals(model, images, find_groups(model, images[0][0]).prunable)
    rankings = []
    for metric in how.pool:
        order = []
        for group, found in signals.items():
            for channel, value in enumerate(metric(found).tolist()):
                order.append((value, group, channel))
        order.sort(key=lambda entry: entry[0])
        rankings.append([(group, channel) for _, group, channel in order])
    candidates: list[tuple[str, int]] = []
    for place in range(len(rankings[0])):
        for ranking in rankings:
            if ranking[place] not in candidates and len(candidates) < how.candidates:
                candidates.append(ranking[place])
    if len(candidates) <= how.channels_per_step:
        return candidates
    before = evaluate(model, images).loss
    weights = convolution_weights(model)
    prices = []
    for candidate in candidates:
        smaller = slow_cut(model, images, [candidate], how)
        nats = evaluate(smaller, images).loss - before
        saved = weights - convolution_weights(smaller)
        if how.per_weight_loss:
            nats = nats / saved if nats > 0 else nats * saved
        prices.append(nats)
    cheapest = sorted(range(len(candidates)), key=prices.__getitem__)
    return [candidates[k] for k in cheapest[: how.channels_per_step]]


def slow_cut(
    model: nn.Module, images: Batches, channels: list[tuple[str, int]], how: Myopic
) -> nn.Module:
    groups = find_groups(model, images[0][0]).prunable
    smaller = copy.deepcopy(model)
    sets: dict[str, list[int]] = {}
    for name, channel in channels:
        sets.setdefault(name, []).append(channel)
    removals = [(groups[name], numbers) for name, numbers in sets.items()]
    cuts = cuts_of(removals)
    apply_cuts(smaller, cuts)
    if how.mode == "compensated":
        means = measure_means(model, images, groups.values())
        for group, numbers in removals:
            shifts = shifts_of(model, group, numbers, means, find_absorbers(model, images[0][0]))
            apply_shifts(smaller, shifts, {c.layer: c.indices for c in cuts if c.side != "in"})
    return smaller


def convolution_weights(model: nn.Module) -> int:
    kinds = nn.modules.conv._ConvNd
    return sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, kinds))


def check_twin(model: nn.Module, how: Myopic, steps: int) -> None:
    """All images are drawn each time, so that chance has no say."""
    images = data(12, 12)
    found = compose_myopically(
        model,
        find_groups(model, images[0][0]),
        drawn_from(images),
        how,
        generator=torch.Generator().manual_seed(0),
    )
    slow = copy.deepcopy(model)
    kept = {n: list(range(g.channels)) for n, g in find_groups(slow, images[0][0]).prunable.items()}
    for _, step in zip(range(steps), found, strict=False):
        expected = slow_step(slow, images, how)
        assert list(step.removed) == [(name, kept[name][c]) for name, c in expected]
        slow = slow_cut(slow, images, expected, how)
        for name in kept:
            gone = {c for n, c in expected if n == name}
            kept[name] = [c for i, c in enumerate(kept[name]) if i not in gone]
        assert torch.allclose(step.network(images[0][0]), slow(images[0][0]), rtol=1e-9)
        assert step.costs.total("weights") == convolution_weights(slow)


def of_twelve(**options: object) -> Myopic:
    return Myopic(images=12, scoring_images=12, **options)  # type: ignore[arg-type]


VARIANTS = {
    "paper": of_twelve(candidates=4),
    "one metric alone": of_twelve(candidates=1, metrics=("fisher",)),
    "per weight": of_twelve(candidates=5, per_weight_loss=True),
    "several a step": of_twelve(candidates=5, channels_per_step=2),
    "compensated": of_twelve(candidates=4, mode="compensated"),
    "exhaustive": of_twelve(candidates=1000, metrics=("l1",)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("style", ["plain", "residual", "concat"])
def test_the_composition_equals_its_slow_twin(variant: str, style: str) -> None:
    check_twin(small(style, 5, norm=style == "residual"), VARIANTS[variant], 3)


@settings(deadline=None, max_examples=6)
@given(model=small_networks(), k=st.integers(1, 6))
def test_the_composition_equals_its_twin_on_random_networks(model: nn.Module, k: int) -> None:
    check_twin(model, of_twelve(candidates=k), 2)


def steps_of(how: Myopic, seed: int = 0, **options: object) -> list[Step]:
    model, images = small("residual", 6), data(48, 16)
    return list(
        compose_myopically(
            model,
            find_groups(model, images[0][0]),
            drawn_from(images),
            how,
            generator=torch.Generator().manual_seed(seed),
            **options,  # type: ignore[arg-type]
        )
    )


def test_forwards_are_counted_and_one_metric_alone_asks_no_oracle() -> None:
    how = Myopic(candidates=4, images=8, scoring_images=16)
    steps = steps_of(how)
    assert [s.oracle_forwards for s in steps[:3]] == [40, 80, 120]
    assert [s.scoring_forwards for s in steps[:3]] == [16, 32, 48]
    alone = steps_of(Myopic((FOUNDING_METRICS[3],), candidates=1, images=8, scoring_images=16))
    assert {s.oracle_forwards for s in alone} == {0}
    weights = steps_of(Myopic((FOUNDING_METRICS[0],), candidates=1, images=8, scoring_images=16))
    assert {s.scoring_forwards for s in weights} == {0}


def test_all_goes_but_what_must_stay() -> None:
    groups = find_groups(small("residual", 6), data()[0][0]).prunable
    steps = steps_of(Myopic(candidates=3, channels_per_step=3, images=4, scoring_images=4))
    removed = [channel for step in steps for channel in step.removed]
    assert len(set(removed)) == len(removed) == sum(g.channels - 1 for g in groups.values())
    least = dict.fromkeys(groups, 3)
    short = steps_of(Myopic(candidates=3, images=4, scoring_images=4), least=least)
    assert sum(len(s.removed) for s in short) == sum(g.channels - 3 for g in groups.values())


def test_chance_is_the_generators() -> None:
    how = Myopic(candidates=4, images=4, scoring_images=4)
    one, same, other = (
        [s.measured[0].nats for s in steps_of(how, seed)[:4] if s.measured[0]] for seed in (0, 0, 1)
    )
    assert one == same != other


def test_the_network_is_left_alone() -> None:
    model, images = small("residual", 4, norm=True), data(12, 4)
    groups, before = find_groups(model, images[0][0]), state_of(model)
    how = Myopic(candidates=4, images=4, scoring_images=4, mode="compensated")
    chance = torch.Generator().manual_seed(0)
    next(compose_myopically(model, groups, drawn_from(images), how, generator=chance))
    assert state_of(model) == before


def test_rankings_take_turns() -> None:
    a, b, c, d = (("g", number) for number in range(4))
    found = nominate({"x": [a, b, c, d], "y": [b, a, d, c]}, 3)
    assert found == {a: ["x", "y"], b: ["y", "x"], c: ["x"]}
    assert list(nominate({"x": [a], "y": [b, c]}, 9)) == [a, b, c]


def test_the_papers_metrics_are_what_they_say() -> None:
    model, images = small("plain", 4), data(6, 3)
    signals = measure_signals(model, images, find_groups(model, images[0][0]).prunable)["stem"]
    layer = model.stem
    for channel in range(4):
        expected = float(layer.weight[channel].detach().square().mean())
        assert float(FOUNDING_METRICS[0](signals)[channel]) == pytest.approx(expected)
    held: list[Tensor] = []

    def hold(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        held.append(output)

    layer.register_forward_hook(hold)
    rows: dict[int, list[list[float]]] = {c: [] for c in range(4)}
    singles = (pair for x, y in images for pair in zip(x, y, strict=True))
    for image, label in singles:
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(image[None]), label[None]).backward()
        a, g = held[-1].detach()[0], held[-1].grad[0]  # type: ignore[index]
        for c in range(4):
            taylor = float((a[c] * g[c]).sum())
            slope, size = abs(float(g[c].sum())), float(a[c].abs().mean())
            rows[c].append([size, slope, abs(taylor), taylor**2 / 2])
    for c in range(4):
        means = torch.tensor(rows[c]).mean(0).tolist()
        for metric, mean in zip(FOUNDING_METRICS[1:], means, strict=True):
            assert float(metric(signals)[c]) == pytest.approx(mean, rel=1e-4)


def test_draws_are_of_distinct_images_and_differ() -> None:
    images = [(torch.arange(10.0 * b, 10.0 * b + 10)[:, None], torch.arange(10)) for b in range(3)]
    draw = drawn_from(images)
    chance = torch.Generator().manual_seed(0)
    one, two = (cast(Batches, draw(17, chance)) for _ in "12")
    values = [torch.cat([x for x, _ in batches])[:, 0] for batches in (one, two)]
    assert all(len(v.unique()) == 17 for v in values)
    assert not torch.equal(*values)
    assert all(len(x) <= 10 and torch.equal(x[:, 0] % 10, y.float()) for x, y in one)
    with pytest.raises(SelectorError, match="31 images cannot be drawn from batches that hold 30"):
        draw(31, chance)


@pytest.mark.parametrize("rounds", [1, 2])
def test_pruning_by_the_composition_meets_its_target(rounds: int) -> None:
    model, images = small("residual", 8, norm=True), data(24, 8)
    before = state_of(model)
    how = Myopic(candidates=4, images=8, scoring_images=8)
    result = prune(
        model,
        images,
        criterion="oracle",
        allocation="myopic",
        myopic=how,
        rounds=rounds,
        recalibrate=False,
        keep_macs=0.6,
    )
    assert result.plan.macs_after <= 0.6 * result.plan.macs_before
    assert result.plan.oracle_images > 0
    assert "myopic" in str(result.report)
    assert state_of(model) == before
    small_again = apply_plan(model, result.plan, images)
    assert torch.allclose(small_again(images[0][0]), result.model(images[0][0]))


def test_a_plan_is_what_the_steps_remove() -> None:
    model, images = small("two_consumers", 8), data(24, 8)
    how = Myopic(candidates=4, channels_per_step=3, images=24, scoring_images=24)
    options = {"criterion": "oracle", "allocation": "myopic", "myopic": how, "keep_weights": 0.5}
    plan = choose(model, images, **options)  # type: ignore[arg-type]
    groups = find_groups(model, images[0][0])
    chance = torch.Generator().manual_seed(0)
    steps = compose_myopically(model, groups, drawn_from(images), how, generator=chance)
    removed = [channel for step in steps for channel in step.removed]
    planned = {(name, c) for name, channels in plan.removals.items() for c in channels}
    assert planned == set(removed[: len(planned)])
    # One less would not have been enough: the last step is cut short.
    counts: dict[Group, int] = {}
    for name, _ in removed[: len(planned) - 1]:
        counts[groups.prunable[name]] = counts.get(groups.prunable[name], 0) + 1
    assert groups.costs.total("weights", counts) > 0.5 * groups.costs.total("weights")


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"metrics": ()}, "an empty pool of metrics"),
        ({"metrics": ("fisher", "fisher")}, "metric 'fisher' is twice in the pool"),
        ({"metrics": ("fish",)}, "unknown metric 'fish'"),
        ({"candidates": 0}, "candidates=0 must be a whole number, 1 or more"),
        ({"images": 1}, "images=1 must be a whole number, 2 or more"),
        ({"scoring_images": 0}, "scoring_images=0 must be"),
        ({"channels_per_step": 2.5}, r"channels_per_step=2.5 must be"),
        ({"channels_per_step": 17}, "channels_per_step=17 is more than candidates=16"),
        ({"mode": "kind"}, "unknown mode 'kind'"),
    ],
)
def test_a_composition_that_means_nothing_is_refused(
    options: dict[str, object], culprit: str
) -> None:
    with pytest.raises(SelectorError, match=culprit):
        Myopic(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"criterion": "fisher"}, "allocation='myopic' .* criterion='oracle'"),
        ({"keep_macs": None, "ratio": 0.5}, "ratio takes the same share of every group"),
        ({"allocation": "even"}, "myopic=Myopic.* allocation='myopic'"),
        ({"myopic": Myopic(mode="compensated")}, "compensated.* a plan"),
        ({"round_to": 2}, "round_to=2 .* one channel at a time"),
        ({}, "256 images cannot be drawn from batches that hold 12"),
    ],
)
def test_what_the_composition_cannot_do_is_said(options: dict[str, object], culprit: str) -> None:
    usual = {"criterion": "oracle", "allocation": "myopic", "myopic": Myopic(), "keep_macs": 0.7}
    asked = {k: v for k, v in {**usual, **options}.items() if v is not None}
    with pytest.raises(SelectorError, match=culprit):
        prune(small("plain"), data(), **asked)  # type: ignore[arg-type]


def test_only_convolutions_take_part_where_it_is_asked() -> None:
    model = small("flatten", 4)
    groups = find_groups(model, data()[0][0])
    assert set(groups.prunable) == {"stem", "hidden"}
    assert set(of_convolutions(model, groups).prunable) == {"stem"}


def test_every_kind_of_coupling_can_be_composed() -> None:
    for style in STYLES:
        model, images = small(style, 4, norm=True), data(8, 4)
        how = Myopic(("fisher", "l1", "batchnorm_scale"), candidates=3, images=8, scoring_images=8)
        steps = list(
            compose_myopically(
                model,
                find_groups(model, images[0][0]),
                drawn_from(images),
                how,
                generator=torch.Generator().manual_seed(0),
            )
        )
        assert steps[-1].network(images[0][0]).isfinite().all()
    assert "mean_squared_weight" not in METRICS
