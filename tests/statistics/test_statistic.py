"""A metric that needs a new statistic declares it, and nothing else has to be touched."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import selector
from selector.errors import SelectorError
from selector.network.input_products import POSITIONS, sampled
from selector.network.tracing import find_groups
from selector.saliency.checks import Scene
from selector.saliency.registry import METRICS, first_order_metrics
from selector.saliency.scoring import score_signals
from selector.statistics.channel_statistics import Signals
from selector.statistics.collect import measure_signals
from selector.statistics.statistic import (
    STATISTICS,
    GroupBatch,
    LayerCall,
    register_statistic,
    statistics_for,
)
from tests.networks import STYLES, data, small
from tests.reference_measuring import at_point


@pytest.fixture(autouse=True)
def tables_as_before() -> Iterator[None]:
    """What a test declares is gone after it."""
    known, metrics = dict(STATISTICS), dict(METRICS)
    yield
    for table, before in ((STATISTICS, known), (METRICS, metrics)):
        table.clear()
        table.update(before)  # type: ignore[arg-type]


def declare_saturation(expensive: bool = False) -> None:
    @selector.register_statistic("saturated", requires="forward", expensive=expensive)
    def saturated(call: LayerCall) -> Tensor:
        """How many positions are beyond one, summed over images."""
        return (call.values.abs() > 1).double().sum((0, 2))

    def slow(scene: Scene) -> list[float]:
        images = at_point(scene)
        return [
            1 - sum(sum(abs(a) > 1 for a, _ in i[c]) / len(i[c]) for i in images) / len(images)
            for c in range(scene.group.channels)
        ]

    @selector.register_metric("saturation", needs="saturated", source="our own", twin=slow)
    def saturation(signals: Signals) -> Tensor:
        """Share of positions that are not saturated."""
        return 1 - signals.statistic("saturated") / signals.at_consumers.positions


def test_a_statistic_of_calls_is_measured_scored_recorded_and_checked() -> None:
    declare_saturation()
    selector.check_metric("saturation")
    scores = selector.score(small("two_consumers"), data(), ["saturation", "l1"])
    assert all(set(found) == {"saturation", "l1"} for found in scores.values())
    assert "saturation" in first_order_metrics()
    assert all("saturation" in found for found in selector.score(small("plain"), data()).values())
    records = selector.record(small("plain"), data(9, 3), network="one", ratios=(0.5,))
    assert "saturation" in {row.arm for row in records.candidates}


def test_an_expensive_statistic_is_measured_for_those_who_ask() -> None:
    declare_saturation(expensive=True)
    assert "saturation" not in first_order_metrics()
    assert "saturation" not in selector.score(small("plain"), data())["stem"]
    assert "saturation" in selector.score(small("plain"), data(), ["saturation"])["stem"]


def signals_of(
    style: str, needs: set[str], pixels: int = 8
) -> tuple[dict[str, Signals], list[Scene]]:
    model, batches = small(style, 4, norm=True), data(5, 2, shape=(3, pixels, pixels))
    groups = find_groups(model, batches[0][0]).required()
    singles = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))]
    scenes = [Scene(model, group, singles) for group in groups.values()]
    return measure_signals(model, batches, groups, needs=needs), scenes


@pytest.mark.parametrize("style", STYLES)
def test_statistics_of_gradients_see_both_and_are_summed_into_channels(style: str) -> None:
    @register_statistic("opposed", of="gradient")
    def opposed(call: LayerCall) -> Tensor:
        assert call.gradient is not None
        return (-call.values * call.gradient).clamp_min(0).sum((0, 2))

    found, scenes = signals_of(style, {"opposed"})
    for signals, scene in zip(found.values(), scenes, strict=True):
        images = at_point(scene)
        for channel, value in enumerate(signals.statistic("opposed").tolist()):
            slow = sum(max(0.0, -a * g) for image in images for a, g in image[channel])
            assert value == pytest.approx(slow / len(images), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("style", ["residual", "flatten", "grouped", "grouped_transposed"])
def test_statistics_of_batches_see_both_points_and_whole_maps(style: str) -> None:
    @register_statistic("together", of="batch", whole_maps=True)
    def together(batch: GroupBatch) -> Tensor:
        rows = torch.cat([planes.flatten(2) for planes in batch.consumers.maps], 2)
        assert torch.allclose(rows.sum(2), batch.consumers.total("value"))
        assert batch.producers.total("value").shape == rows.shape[:2]
        return torch.einsum("ncx,ndx->cd", rows, rows)

    found, scenes = signals_of(style, {"together"})
    for signals, scene in zip(found.values(), scenes, strict=True):
        squares = [
            sum(a * a for image in at_point(scene) for a, _ in image[c]) / len(scene.images)
            for c in range(scene.group.channels)
        ]
        assert signals.statistic("together").diagonal().tolist() == pytest.approx(squares)


def test_producers_and_inputs_apart() -> None:
    @register_statistic("at_outputs", where="producers")
    def at_outputs(call: LayerCall) -> Tensor:
        return call.sums[0].sum(0)

    @register_statistic("of_inputs", by_input=True)
    def of_inputs(call: LayerCall) -> Tensor:
        return call.sums[1].sum(0)

    found, _ = signals_of("flatten", {"at_outputs", "of_inputs"})
    signals = found["stem"]
    assert torch.allclose(signals.statistic("at_outputs"), signals.at_producers["value"].sum)
    (side,) = signals.consumer_inputs
    assert side.statistics["of_inputs"].shape == (4, 4)
    assert torch.allclose(side.statistics["of_inputs"].sum(1), signals.activation.absolute)


@pytest.mark.parametrize("style", ["residual", "grouped", "depthwise"])
def test_sampled_statistics_see_the_same_positions_of_every_group(style: str) -> None:
    seen: dict[str, list[tuple[float, int]]] = {"all": [], "some": []}

    def look(call: LayerCall, of: str) -> Tensor:
        seen[of].append((call.share, call.values.shape[2]))
        picked = sampled(call.values) if of == "all" else call.values
        return picked.sum((0, 2))

    register_statistic("of_all", by_consumer=True)(lambda call: look(call, "all"))
    register_statistic("of_some", by_consumer=True, sampled=True)(lambda call: look(call, "some"))
    found, _ = signals_of(style, {"of_all", "of_some"}, pixels=12)
    for signals in found.values():
        for consumer in signals.consumer_inputs:
            assert torch.allclose(consumer.products["of_all"], consumer.products["of_some"])
    for (_, every), (share, read) in zip(seen["all"], seen["some"], strict=True):
        assert read == min(every, POSITIONS)
        assert share == pytest.approx(read / every)
    assert any(share < 1 for share, _ in seen["some"])


def test_only_what_is_asked_for_is_measured() -> None:
    declare_saturation()
    assert {s.name for s in statistics_for({"weights"})} == set()
    assert {s.name for s in statistics_for({"forward"})} == {"positive", "squares"}
    assert "saturated" in {s.name for s in statistics_for({"saturated"})}
    found, _ = signals_of("plain", {"forward"})
    with pytest.raises(SelectorError, match="no saturated; state what the metric needs"):
        found["stem"].statistic("saturated")


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: register_statistic("positive"), "statistic 'positive' is taken"),
        (lambda: register_statistic("forward"), "statistic 'forward' is taken"),
        (lambda: register_statistic("a b"), "must be made of letters"),
        (lambda: register_statistic("x", requires="forwards"), "unknown requires='forwards'"),
        (lambda: register_statistic("x", of="calls"), "unknown of='calls'; known: call"),
        (lambda: register_statistic("x", where="inputs"), "unknown where='inputs'"),
        (lambda: register_statistic("x", of="batch", sampled=True), "leave sampled out"),
    ],
)
def test_a_statistic_that_makes_no_sense_is_refused(
    declare: Callable[[], object], message: str
) -> None:
    before = dict(STATISTICS)
    with pytest.raises(SelectorError, match=message):
        declare()
    assert before == STATISTICS


@pytest.mark.parametrize(
    ("of", "value", "message"),
    [
        ("call", lambda call: call.values.sum(), r"gives \(\) at layer 'next', not one number"),
        ("call", lambda call: 1.0, r"gives float at layer"),
        ("batch", lambda batch: None, "gives a NoneType, not a tensor"),
    ],
)
def test_a_statistic_that_gives_nonsense_is_named(
    of: str, value: Callable[..., Tensor], message: str
) -> None:
    register_statistic("nonsense", of=of)(value)  # type: ignore[arg-type]
    with pytest.raises(SelectorError, match=f"statistic 'nonsense' {message}"):
        signals_of("plain", {"nonsense"})


@pytest.mark.parametrize("needs", ["magic", ["forward", "magic"], {"magic"}, 3, None])
def test_an_unknown_need_is_told_when_the_metric_is_registered(needs: object) -> None:
    before = dict(METRICS)
    with pytest.raises(SelectorError, match=r"needs=.*known: .*weights.*positive"):
        selector.register_metric("mine", needs=needs, source="")(METRICS["l1"].score)  # type: ignore[arg-type]
    assert before == METRICS


def test_needs_are_a_set_and_all_of_them_are_measured() -> None:
    declare_saturation()

    @selector.register_metric("both", needs=["saturated", "backward"], arm=False)
    def both(signals: Signals) -> Tensor:
        return signals.statistic("saturated") + signals.taylor.absolute

    assert METRICS["both"].needs == frozenset({"saturated", "backward"})
    assert METRICS["both"].listed_needs == "backward, saturated"
    model = small("plain")
    groups = find_groups(model, data()[0][0]).required()
    signals = measure_signals(model, data(), groups, needs=METRICS["both"].needs)
    assert score_signals(signals, ["both"])["stem"]["both"].isfinite().all()
