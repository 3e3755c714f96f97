"""Every metric equals its slow twin, on random networks and a trained one; what a pass leaves."""

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from selector.saliency.registry import METRICS, Metric, rank_mean
from selector.saliency.scoring import lowest, score
from selector.statistics.collect import measure_signals
from tests.networks import STYLES, data, small, small_networks, state_of
from tests.reference import TWINS
from tests.scored import REAL, check_twins, groups_of, scores_of


def test_every_metric_but_chance_has_a_slow_twin() -> None:
    assert set(TWINS) == set(REAL)


@settings(deadline=None, max_examples=20)
@given(model=small_networks(), count=st.integers(2, 5), batch=st.integers(1, 3))
def test_metrics_equal_their_slow_twins(model: nn.Module, count: int, batch: int) -> None:
    batches = data(count, batch, seed=count)
    scores = scores_of(model, batches)
    assert scores.keys() == groups_of(model, batches[0][0]).keys()
    check_twins(model, batches, scores)


@pytest.mark.parametrize("style", STYLES)
def test_metrics_equal_their_slow_twins_in_every_kind_of_coupling(style: str) -> None:
    for options in ({"norm": True}, {"act": "silu", "stride": 2}):
        model, batches = small(style, seed=1, **options), data(3, 2, seed=1)
        check_twins(model, batches, scores_of(model, batches))


def test_twins_hold_for_a_loss_of_the_users_own() -> None:
    def squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs, functional.one_hot(targets, 5).double())

    smooth = functools.partial(functional.cross_entropy, label_smoothing=0.1)
    for loss in (squares, smooth):
        model, batches = small("two_consumers", norm=True), data(5, 2)
        check_twins(model, batches, scores_of(model, batches, loss=loss), loss=loss)


SIGNED = {"second_taylor_gate", "grasp"}


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_finite_one_a_channel_and_not_negative(metric: str) -> None:
    for style in STYLES:
        model = small(style, norm=True)
        groups = groups_of(model, data()[0][0])
        scores = scores_of(model, data(), [metric])
        assert any(metric in found for found in scores.values())
        for name, found in scores.items():
            if metric in found:
                assert found[metric].shape == (groups[name].channels,)
                assert found[metric].dtype == torch.float64
                assert found[metric].isfinite().all()
                assert metric in SIGNED or (found[metric] >= -1e-12).all()


def test_signed_scores_have_both_signs() -> None:
    found = scores_of(small("plain", 6), data(), SIGNED)["stem"]
    for name in SIGNED:
        assert float(found[name].min()) < 0 < float(found[name].max())


def test_the_default_is_every_metric_of_first_order_that_a_group_can_have() -> None:
    scores = score(small("plain", norm=True), data())
    expensive = {"synflow", "obd", "gauss_newton", "second_taylor_gate", "grasp", "hrank", "chip"}
    assert set(scores["stem"]) == set(METRICS) - expensive
    assert set(scores["next"]) == set(METRICS) - expensive - {"batchnorm_scale"}


def test_expensive_and_first_order_metrics_give_the_same_whatever_else_is_asked_for() -> None:
    model, batches = small("grouped", norm=True), data()
    together = scores_of(model, batches)
    for metric in REAL:
        for name, found in scores_of(model, batches, [metric]).items():
            if metric in found:
                assert torch.equal(found[metric], together[name][metric]), (name, metric)


def test_chance_is_an_argument_and_only_that() -> None:
    model, batches = small("plain"), data()

    def drawn(seed: int, metric: str) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return score(model, batches, [metric], generator=generator)["stem"][metric]

    torch.manual_seed(5)
    global_before = torch.get_rng_state()
    for metric in ("random", "gauss_newton"):
        assert torch.equal(drawn(1, metric), drawn(1, metric))
        assert not torch.equal(drawn(1, metric), drawn(2, metric))
    assert torch.equal(drawn(1, "taylor"), drawn(2, "taylor"))
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
    scores_of(model, data())
    assert state_of(model) == before


@pytest.mark.parametrize("metric", ["taylor", "obd", "grasp"])
def test_the_network_is_left_as_found_after_an_error(metric: str) -> None:
    model = small("residual", norm=True).train()
    before = state_of(model)

    def fails(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        score(model, data(), [metric], loss=fails)
    assert state_of(model) == before


def test_train_mode_and_frozen_parameters_change_no_score() -> None:
    model = small("two_consumers", norm=True)
    expected = scores_of(model, data())
    frozen = copy.deepcopy(model).train().requires_grad_(False)
    for name, found in scores_of(frozen, data()).items():
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


def test_a_constant_metric_has_no_say_in_a_mean_of_ranks() -> None:
    """Ties share their mean rank; by channel number, the first channel would rank lowest."""
    model, batches = small("plain", 6), data()
    groups = groups_of(model, batches[0][0])
    signals = measure_signals(model, batches, groups)["stem"]
    constant = Metric("constant", lambda s: torch.ones(s.channels), frozenset({"weights"}), "")
    METRICS["constant"] = constant
    try:
        alone, joined = (rank_mean(names)(signals) for names in (["l1"], ["l1", "constant"]))
    finally:
        del METRICS["constant"]
    assert torch.allclose(joined, (alone + 3.5 / 6) / 2)
    assert torch.equal(joined.argsort(), METRICS["l1"](signals).argsort())
