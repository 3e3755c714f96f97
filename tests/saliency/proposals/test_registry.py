"""The table of proposals, proposals of one's own, and what is refused; plans by proposals."""

import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import selector
from selector.cli.app import app
from selector.errors import SelectorError
from selector.network.tracing import find_groups
from selector.saliency.proposals.registry import PROPOSALS, Propose, register_proposal
from selector.saliency.registry import METRICS, RESERVED, register_metric
from selector.statistics.channel_statistics import Signals
from selector.statistics.collect import measure_signals
from selector.statistics.statistic import register_statistic
from tests.networks import CLASSES, data, small


@pytest.fixture
def own() -> Iterator[Callable[[Propose], str]]:
    """Registers a proposal of one's own, for one test."""

    def add(propose: Propose) -> str:
        register_proposal("own", needs="weights", source="a test")(propose)
        return "own"

    yield add
    PROPOSALS.pop("own", None)


@pytest.mark.parametrize("name", PROPOSALS)
def test_a_proposal_is_a_criterion(name: str) -> None:
    model, batches = small("residual", 6, norm=True), data()
    plan = selector.choose(model, batches, criterion=name, ratio=0.5)
    assert plan.criterion == name
    assert {choice.metric for choice in plan.choices} == {name}
    assert {choice.group: len(choice.remove) for choice in plan.choices} == {"stem": 3, "inner": 3}
    result = selector.prune(model, batches, criterion=name, ratio=0.5, rounds=1, repair=False)
    assert result.plan.choices == plan.choices
    assert result.model.stem.out_channels == 3


UNLABELLED = ("reconstruction", "reconstruction_fisher", "joint_softened", "column_subset")


@pytest.mark.parametrize("name", UNLABELLED)
def test_sets_are_chosen_without_labels(name: str) -> None:
    model, batches = small("plain", 6, norm=True), data()
    unlabelled = [(images, None) for images, _ in batches]
    others = [(images, (labels + 1) % CLASSES) for images, labels in batches]
    plans = [
        selector.choose(model, some, criterion=name, ratio=0.5)  # type: ignore[arg-type]
        for some in (batches, unlabelled, others)
    ]
    assert plans[0].choices == plans[1].choices == plans[2].choices


def test_a_network_is_pruned_by_a_set_without_labels() -> None:
    unlabelled = [(images, None) for images, _ in data()]
    result = selector.prune(
        small("plain", 6, norm=True), unlabelled, criterion="reconstruction", keep_macs=0.5
    )
    assert result.report.steps[-1].macs_kept == pytest.approx(0.5, abs=0.1)


def test_other_proposals_name_what_they_lack_without_labels() -> None:
    unlabelled = [(images, None) for images, _ in data()]
    with pytest.raises(SelectorError, match="no targets"):
        selector.choose(small("plain"), unlabelled, criterion="joint_0", ratio=0.5)


def test_a_proposal_of_ones_own_is_used_and_listed(own: Callable[[Propose], str]) -> None:
    def odd(signals: Signals, count: int) -> list[int]:
        """Odd channels first."""
        return [*range(1, signals.channels, 2), *range(0, signals.channels, 2)][:count]

    name = own(odd)
    plan = selector.choose(small("plain", 6), data(), criterion=name, ratios={"stem": 0.5})
    assert [choice.remove for choice in plan.choices] == [(1, 3, 5)]
    listed = json.loads(CliRunner().invoke(app, ["metrics", "--json"]).stdout)
    assert {
        "name": "own",
        "kind": "set",
        "needs": "weights",
        "source": "a test",
        "arm": False,
        "summary": "Odd channels first.",
    } in listed


def test_the_command_lists_metrics_and_proposals_once() -> None:
    listed = json.loads(CliRunner().invoke(app, ["metrics", "--json"]).stdout)
    assert [row["name"] for row in listed] == [
        *METRICS,
        *(n for n in PROPOSALS if n not in METRICS),
    ]
    kinds = {row["name"]: row["kind"] for row in listed}
    assert {name for name, kind in kinds.items() if kind == "set"} == {*PROPOSALS} - {*METRICS}
    assert set(kinds.values()) == {"set", "ranking"}
    assert all(row["summary"] and row["source"] for row in listed)


FAULTS: dict[str, tuple[object, str]] = {
    "repeated": ([1, 2, 1], "channel 1 twice"),
    "too many": ([0, 1, 2, 3], "4 channels, and 3 must go"),
    "missing": ([0, 1], "2 channels, and 3 must go"),
    "none": ([], "0 channels, and 3 must go"),
    "outside": ([0, 1, 6], "channel 6, and there are 0 to 5"),
    "negative": ([0, 1, -1], "channel -1, and there are 0 to 5"),
    "no whole numbers": ([0.0, 1.0, 2.0], "not the numbers of the channels"),
    "a mask": (
        np.array([True, True, True, False, False, False]),
        "not the numbers of the channels",
    ),
    "a tensor of scores": (torch.rand(6), "not the numbers of the channels"),
    "nothing": (None, "not the numbers of the channels"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_set_is_refused_by_name(fault: str, own: Callable[[Propose], str]) -> None:
    given, words = FAULTS[fault]
    name = own(lambda signals, count: given)  # type: ignore[arg-type, return-value]
    with pytest.raises(SelectorError, match="proposal 'own'") as caught:
        selector.choose(small("plain", 6), data(), criterion=name, ratios={"stem": 0.5})
    assert words in str(caught.value)
    assert "group 'stem'" in str(caught.value)


@pytest.mark.parametrize(
    "given", [np.array([4, 0, 2]), torch.tensor([4, 0, 2]), (4, 0, 2), {0, 2, 4}, iter([4, 0, 2])]
)
def test_sets_come_in_any_order_and_kind(given: object, own: Callable[[Propose], str]) -> None:
    name = own(lambda signals, count: given)  # type: ignore[arg-type, return-value]
    plan = selector.choose(small("plain", 6), data(), criterion=name, ratios={"stem": 0.5})
    assert plan.choices[0].remove == (0, 2, 4)


def test_names_are_refused_that_are_taken_or_no_names() -> None:
    def propose(signals: Signals, count: int) -> list[int]:
        return list(range(count))

    for name in ("reconstruction", "l1", "rank_mean", "selector", "oracle"):
        with pytest.raises(SelectorError, match=f"proposal '{name}' is taken"):
            register_proposal(name)(propose)
    with pytest.raises(SelectorError, match="'my set' must be made of letters"):
        register_proposal("my set")(propose)
    with pytest.raises(SelectorError, match="unknown needs='labels'"):
        register_proposal("own", needs="labels")
    with pytest.raises(SelectorError, match="unknown gradients='outputs'; known: labels, softened"):
        register_proposal("own", gradients="outputs")  # type: ignore[arg-type]
    for name in RESERVED:
        with pytest.raises(SelectorError, match=f"metric '{name}' is taken"):
            register_metric(name)(lambda signals: signals.random)
    assert {name for name in PROPOSALS if name not in METRICS} <= RESERVED


def test_unknown_criteria_are_answered_with_the_proposals_too() -> None:
    with pytest.raises(SelectorError, match=r"'reconstructoin'; .*reconstruction,"):
        selector.choose(small("plain"), data(), criterion="reconstructoin", ratio=0.5)
    with pytest.raises(SelectorError, match="criterion 'reconstruction' has one"):
        selector.choose(small("plain"), data(), criterion="reconstruction", ratio=0.5, verify=3)


def test_a_proposal_that_needs_normalisation_names_the_group_without() -> None:
    register_proposal("own", needs="normalisation")(lambda signals, count: range(count))
    try:
        with pytest.raises(SelectorError, match=r"'own' needs normalisation, and group 'stem'"):
            selector.choose(small("plain", 6), data(), criterion="own", ratios={"stem": 0.5})
    finally:
        del PROPOSALS["own"]


def test_a_statistic_by_consumer_is_of_calls_or_gradients_of_consumers() -> None:
    for options in ({"of": "batch"}, {"where": "producers"}, {"by_input": True}):
        with pytest.raises(SelectorError, match="statistic 'own' is by_consumer"):
            register_statistic("own", by_consumer=True, **options)  # type: ignore[arg-type]


def test_activations_that_are_no_numbers_are_named_with_the_group() -> None:
    model, batches = small("plain"), data()
    groups = find_groups(model, batches[0][0]).prunable
    batches[0][0][0, 0, 0, 0] = torch.inf
    unlabelled = [(images, None) for images, _ in batches]
    signals = measure_signals(model, unlabelled, groups, needs="input_products")
    for name in ("reconstruction", "column_subset"):
        with pytest.raises(SelectorError, match=rf"'{name}', in group 'stem': .* not finite"):
            PROPOSALS[name].checked("stem", signals["stem"], 1)
