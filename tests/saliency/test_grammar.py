"""The grammar of saliencies: every combination equals its slow twin, and has one name."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from selector.errors import SelectorError
from selector.saliency.checks import Scene
from selector.saliency.grammar import (
    POINTWISE,
    REDUCTION,
    SCALING,
    activation,
    compose,
    output,
    systematic_names,
    weight,
)
from selector.saliency.registry import METRICS, find_metric, known_metrics
from selector.saliency.scoring import needs_of, score, score_signals
from selector.statistics.collect import measure_signals
from tests.networks import STYLES, data, small, small_networks
from tests.reference import singles
from tests.reference_grammar import systematic
from tests.scored import close, groups_of, scores_of

NAMES = list(systematic_names())
UNSCALED = [name for name in NAMES if name.partition("@")[0].count(".") == 2]
# Every scaling of one combination in seven: each meets every base, pointwise and reduction.
SPREAD = [name for name in NAMES if name not in UNSCALED][::7]


def check(model: nn.Module, names: list[str], count: int = 3, batch: int = 2) -> None:
    batches = data(count, batch, seed=count)
    groups = groups_of(model, batches[0][0])
    for group, found in scores_of(model, batches, names).items():
        scene = Scene(model, groups[group], singles(batches))
        assert list(found) == names
        for name, values in found.items():
            expected = torch.tensor(systematic(scene, name), dtype=torch.float64)
            assert close(values, expected, 1e-5), (group, name, values, expected)


def test_there_are_as_many_names_as_combinations() -> None:
    assert len(set(NAMES)) == len(NAMES) == 3 * len(POINTWISE) * len(REDUCTION) * len(SCALING)
    assert len(UNSCALED) == 3 * len(POINTWISE) * len(REDUCTION) == 75
    for part in (*POINTWISE, *REDUCTION, *(set(SCALING) - {"none"}), "weight", "@producers"):
        assert any(part in name for name in SPREAD), part


@pytest.mark.parametrize(
    ("style", "options"),
    [
        ("residual", {"norm": True}),
        ("flatten", {"act": "gelu"}),
        ("grouped", {"norm": True, "stride": 2}),
        ("transposed", {"act": "prelu"}),
    ],
)
def test_unscaled_combinations_equal_their_slow_twins(
    style: str, options: dict[str, object]
) -> None:
    check(small(style, 3, 2, **options), UNSCALED)


@pytest.mark.parametrize("style", STYLES)
def test_every_scaling_equals_its_slow_twin(style: str) -> None:
    check(small(style, 3, 1, norm=style in ("plain", "concat")), SPREAD)


@settings(deadline=None, max_examples=12)
@given(
    model=small_networks(),
    names=st.lists(st.sampled_from(NAMES), min_size=5, max_size=15, unique=True),
    count=st.integers(1, 4),
    batch=st.integers(1, 3),
)
def test_combinations_equal_their_slow_twins(
    model: nn.Module, names: list[str], count: int, batch: int
) -> None:
    check(model, names, count, batch)


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_all_combinations_equal_their_slow_twins(style: str) -> None:
    for options in ({"norm": True}, {"act": "silu", "stride": 2}, {"act": "prelu"}):
        check(small(style, 4, 5, **options), NAMES, count=5)


@pytest.mark.parametrize(
    ("metric", "combination", "factor"),
    [
        ("l1", "weight.value.l1", 1.0),
        ("l2", "weight.value.l2", 1.0),
        ("mean_activation", "activation.value.l1.cardinality", 1.0),
        ("mean_gradient", "activation.gradient.abs_of_sum", 1.0),
        ("taylor", "activation.taylor.abs_of_sum", 1.0),
        ("taylor_elementwise", "activation.taylor.l1", 1.0),
        ("taylor_2016", "activation.taylor.abs_of_sum.layer_l2", 1.0),
        ("fisher", "activation.taylor.square_of_sum", 0.5),
        ("weight_taylor_joint", "weight.taylor.square_of_sum", 1.0),
        ("snip", "weight.taylor.l1", 1.0),
        ("obd", "weight.gauss_newton.sum", 1.0),
    ],
)
def test_metrics_of_the_table_have_a_systematic_name(
    metric: str, combination: str, factor: float
) -> None:
    for found in scores_of(small("residual", norm=True), data(), [metric, combination]).values():
        assert close(factor * found[combination], found[metric], 1e-12)


def test_a_scaling_is_one_factor_for_the_whole_group() -> None:
    names = [f"activation.taylor.l1{suffix}" for suffix in ("", *(f".{s}" for s in SCALING))]
    for found in scores_of(small("two_consumers", 5), data(), names).values():
        for name in names:
            ratios = found[name] / found[names[0]]
            assert close(ratios, ratios[:1].expand_as(ratios), 1e-12)


def test_a_composition_is_a_metric() -> None:
    model, batches = small("plain"), data()
    groups = groups_of(model, batches[0][0])
    names = ["weight.taylor.sum", "activation.value.l2", "activation.gradient.l1@producers"]
    signals = measure_signals(model, batches, groups, needs=needs_of(names))
    made = [
        compose(weight("taylor"), "sum"),
        compose(activation("value"), "l2"),
        compose(output("gradient"), "l1"),
    ]
    for group, found in score_signals(signals, names).items():
        for name, function in zip(names, made, strict=True):
            assert torch.equal(function(signals[group]), found[name])


def test_what_a_combination_needs_is_measured_and_no_more() -> None:
    needs = {name: find_metric(name).listed_needs for name in NAMES}
    assert needs["weight.value.l1.layer_l1"] == "weights"
    assert needs["activation.value.sum@producers"] == "forward"
    assert needs["weight.gradient.l1"] == needs["activation.taylor.l1"] == "backward"
    assert (
        needs["weight.second_taylor.l1"] == needs["activation.gauss_newton.sum"] == "second_order"
    )
    for name in UNSCALED:
        assert score(small("plain", 2), data(4), [name])["stem"][name].isfinite().all()


@pytest.mark.parametrize(
    "name",
    [
        "activation.taylor",
        "activation.taylor.l3",
        "activation.tailor.l1",
        "activations.taylor.l1",
        "activation.taylor.l1.layer",
        "activation.taylor.l1.none.none",
        "activation.taylor.l1@consumers",
        "activation.taylor.l1@",
        "activation.taylor.l1@producers.cardinality",
        "weight.value.l1@producers",
        ".taylor.l1",
    ],
)
def test_other_names_are_unknown(name: str) -> None:
    with pytest.raises(SelectorError, match=r"unknown metric .*BASE\.POINTWISE\.REDUCTION"):
        score(small("plain"), data(), [name])


def test_known_names_come_in_the_order_of_the_table_then_of_the_alphabet() -> None:
    names = ["weight.value.l1", "taylor", "activation.value.l1", "l1", "nonsense"]
    assert known_metrics(names) == ["l1", "taylor", "activation.value.l1", "weight.value.l1"]
    assert known_metrics(METRICS) == list(METRICS)
