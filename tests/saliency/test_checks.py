"""Laws run over the table; a metric from outside joins it in five lines, and is held to them."""

import copy
import json
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import selector
from selector.cli.app import app
from selector.errors import SelectorError
from selector.network.groups import Group
from selector.network.layers import input_dimension
from selector.saliency import checks as laws
from selector.saliency.checks import NETWORKS, Scene
from selector.saliency.grammar import systematic_names
from selector.saliency.registry import METRICS, register_metric
from selector.saliency.scoring import score_signals
from selector.statistics.channel_statistics import Signals
from selector.statistics.collect import measure_signals
from tests.networks import data, small
from tests.reference import TWINS
from tests.reference_measuring import at_point
from tests.scored import REAL, close, groups_of, scores_of


@pytest.fixture(autouse=True)
def table_as_before() -> Iterator[None]:
    """Metrics that a test registers are gone after it."""
    before = set(METRICS)
    yield
    for name in set(METRICS) - before:
        METRICS.pop(name)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_obeys_the_laws(name: str) -> None:
    selector.check_metric(name)


@pytest.mark.parametrize("name", list(systematic_names())[::29])
def test_combinations_of_the_grammar_obey_the_laws(name: str) -> None:
    selector.check_metric(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(systematic_names()))
def test_every_combination_of_the_grammar_obeys_the_laws(name: str) -> None:
    selector.check_metric(name)


@pytest.mark.parametrize("name", TWINS)
def test_the_twins_of_the_table_pass_as_twins_of_a_registered_metric(name: str) -> None:
    known = METRICS[name]
    register_metric("ours", needs=known.needs, twin=TWINS[name])(known.score)
    selector.check_metric("ours")


@pytest.mark.parametrize(
    "style", ["two_consumers", "depthwise", "flatten", "concat", "grouped", "grouped_transposed"]
)
def test_permuting_channels_permutes_scores(style: str) -> None:
    model, batches = small(style, 5, act="silu", norm=True), data()
    group = groups_of(model, batches[0][0])["stem"]
    order = [3, 0, 4, 1, 2]
    permuted = reordered(model, group, order)
    assert torch.allclose(permuted(batches[0][0]), model(batches[0][0]))
    before, after = (scores_of(m, batches, REAL)["stem"] for m in (model, permuted))
    for metric in REAL:
        assert close(after[metric], before[metric][order], 1e-7), metric
        # Smooth maps have no zeros, and their ranks are full: these two say nothing here.
        assert metric in ("hrank", "apoz") or not close(after[metric], before[metric], 1e-3), metric


def reordered(model: nn.Module, group: Group, order: list[int]) -> nn.Module:
    """The same function with a group's channels in another order, by hand."""
    copied = copy.deepcopy(model)
    for part in group.slices:
        layer = copied.get_submodule(part.layer)
        moved = torch.arange(len(part.indices))
        for new, old in enumerate(order):
            own = [
                [i for i, c in zip(part.indices, part.channels, strict=True) if c == channel]
                for channel in (new, old)
            ]
            moved[own[0]] = torch.tensor(own[1])
        for name, tensor in layer.state_dict(keep_vars=True).items():
            if tensor.ndim == 0 or (part.side == "in" and name != "weight"):
                continue
            dimension = input_dimension(layer) if part.side == "in" else 0
            # A grouped convolution has its inputs modulo its groups.
            tensor.data = tensor.data.index_select(dimension, moved[: tensor.shape[dimension]])
    return copied


@pytest.mark.parametrize("style", ["two_consumers", "flatten", "grouped", "grouped_transposed"])
def test_splitting_the_images_otherwise_changes_nothing(style: str) -> None:
    model = small(style, norm=True)
    whole, parts = scores_of(model, data(12, 12)), scores_of(model, data(12, 5))
    for name, found in whole.items():
        for metric, values in found.items():
            assert close(parts[name][metric], values, 1e-6), (name, metric)


class CountedBatches:
    """Batches that know how far they were ever read."""

    def __init__(self) -> None:
        self.batches, self.furthest = data(12, 4), 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(self.batches):
            self.furthest = max(self.furthest, number + 1)
            yield batch


@pytest.mark.parametrize("needs", ["weights", "normalisation", "flow"])
def test_metrics_of_weights_alone_read_no_batch_beyond_the_probe(needs: str) -> None:
    model, batches = (
        nn.Sequential(*NETWORKS["plain"]()[:-1], nn.Linear(5, 5)).double(),
        CountedBatches(),
    )
    names = [name for name, metric in METRICS.items() if metric.needs == {needs}]
    assert names
    selector.score(model, batches, names)
    assert batches.furthest == 1
    selector.score(model, batches, [*names, "apoz"])
    assert batches.furthest == 3


def register_tail(twin: Callable[[Scene], list[float]] | None = None) -> None:
    @register_metric("tail", needs="backward", source="our own", twin=twin)
    def tail(signals: Signals) -> Tensor:
        """Root of the summed squares of activation x gradient."""
        return signals.taylor.square.sqrt()


def slow_tail(scene: Scene) -> list[float]:
    images = at_point(scene)
    return [
        (sum((a * g) ** 2 for image in images for a, g in image[c]) / len(images)) ** 0.5
        for c in range(scene.group.channels)
    ]


def test_a_metric_from_outside_is_scored_listed_recorded_and_checked() -> None:
    model, batches = small("two_consumers", 5, norm=True), data(9, 3)
    register_tail(slow_tail)
    scores = selector.score(model, batches)
    assert all("tail" in found for found in scores.values())
    expected = scores_of(model, batches, ["activation.taylor.l2"])["stem"]
    assert scores["stem"]["tail"].shape == expected["activation.taylor.l2"].shape
    listed = CliRunner().invoke(app, ["metrics", "--json"])
    rows = {row["name"]: row for row in json.loads(listed.output)}
    assert rows["tail"]["summary"] == "Root of the summed squares of activation x gradient."
    assert (rows["tail"]["needs"], rows["tail"]["source"]) == ("backward", "our own")
    records = selector.record(model, batches, network="one", ratios=(0.0, 0.5))
    assert all("tail" in row.scores for row in records.groups)
    assert {"tail", "taylor"} <= {row.arm for row in records.candidates}
    selector.check_metric("tail")


def test_a_metric_that_is_no_arm_is_recorded_and_never_a_candidate() -> None:
    register_metric("twice_l2", needs="weights", arm=False)(
        lambda signals: 2 * METRICS["l2"](signals)
    )
    records = selector.record(small("plain"), data(9, 3), network="one", ratios=(0.5,))
    assert all("twice_l2" in row.scores for row in records.groups)
    assert "twice_l2" not in {row.arm for row in records.candidates}


@pytest.mark.parametrize(
    "name",
    ["l1", "random", "selector", "oracle", "activation.taylor.l2", "weight.value.l1", "a b", ""],
)
def test_taken_names_and_names_of_the_grammar_are_refused(name: str) -> None:
    before = dict(METRICS)
    with pytest.raises(SelectorError, match=r"is taken|must be made of letters"):
        register_metric(name)(lambda signals: signals.taylor.sum)
    assert before == METRICS
    register_tail()
    with pytest.raises(SelectorError, match=r"metric 'tail' is taken; choose another name"):
        register_tail()


def test_an_unknown_metric_cannot_be_checked() -> None:
    with pytest.raises(SelectorError, match=r"unknown metric 'tial'; known: l1"):
        selector.check_metric("tial")


def wrong(score: Callable[[Signals], Tensor], message: str, needs: str = "weights") -> None:
    register_metric("ours", needs=needs)(score)  # type: ignore[arg-type]
    with pytest.raises(SelectorError, match=message):
        selector.check_metric("ours")


def test_a_wrong_twin_is_caught() -> None:
    register_tail(lambda scene: [2 * score for score in slow_tail(scene)])
    message = r"metric 'tail' breaks a law in network 'plain', group '0': .* its slow twin; \["
    with pytest.raises(SelectorError, match=message):
        selector.check_metric("tail")


def test_a_twin_of_another_length_is_caught() -> None:
    register_tail(lambda scene: slow_tail(scene)[1:])
    with pytest.raises(SelectorError, match=r"'tail' breaks a law .* slow twin"):
        selector.check_metric("tail")


def test_a_twin_gets_a_network_of_its_own() -> None:
    def careless(scene: Scene) -> list[float]:
        found = slow_tail(scene)
        for parameter in scene.model.parameters():
            assert parameter.grad is None
            assert parameter.requires_grad
            parameter.data.zero_()
        return found

    register_tail(careless)
    selector.check_metric("tail")


def test_scores_that_follow_the_number_of_a_channel_are_caught() -> None:
    wrong(
        lambda signals: signals.weight.abs().sum(1) * torch.arange(1.0, signals.channels + 1),
        r"'ours' breaks a law in network 'plain', group '0': channels in another order",
    )


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda signals: signals.weight, r"shape \(4, 27\), not \(4,\)"),
        (lambda signals: signals.weight.sum(), r"shape \(\), not \(4,\)"),
        (lambda signals: [0.0] * signals.channels, "list, not a tensor of floating point numbers"),
        (lambda signals: torch.arange(signals.channels), r"torch.int64, not a tensor of floating"),
        (lambda signals: signals.weight.sum(1) / 0, r"\[-?inf"),
        (lambda signals: signals.taylor.sum, "these signals hold weights only"),
    ],
)
def test_scores_that_are_no_scores_are_caught(
    score: Callable[[Signals], Tensor], message: str
) -> None:
    place = r"metric 'ours' breaks a law in network 'plain', group '0': one finite number for each"
    wrong(score, f"{place} channel; .*{message}")


def test_a_metric_that_needs_more_than_it_says_is_told_so() -> None:
    wrong(
        lambda signals: signals.taylor.sum, "no 'taylor' .* state what the metric needs", "forward"
    )


def test_chance_that_is_no_argument_is_caught() -> None:
    wrong(lambda signals: torch.rand(signals.channels), "scored again, the same scores")


def test_a_metric_that_changes_the_signals_is_caught() -> None:
    def doubling(signals: Signals) -> Tensor:
        return signals.taylor.sum.mul_(2)

    wrong(doubling, "scored again, the same scores", "backward")


def test_a_metric_that_changes_the_network_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def meddling(model: nn.Module, *arguments: object, **options: object) -> dict[str, Signals]:
        next(model.parameters()).grad = None
        return measure_signals(model, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(laws, "measure_signals", meddling)
    message = r"'l1' breaks a law in network 'plain': .* as found; changed: gradient of '0.weight'"
    with pytest.raises(SelectorError, match=message):
        selector.check_metric("l1")


def test_a_score_is_computed_once_for_the_same_signals() -> None:
    calls = []

    @register_metric("counted", needs="weights", arm=False)
    def counted(signals: Signals) -> Tensor:
        calls.append(signals)
        return signals.weight.sum(1)

    model, batches = small("plain"), data()
    groups = groups_of(model, batches[0][0])
    signals = measure_signals(model, batches, groups, needs={"weights"})
    for _ in range(2):
        score_signals(signals, ["counted"])
    assert len(calls) == len(groups)
