"""How a pruning was made: the call can be typed again, and nothing private is told."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import selector
from selector.data.calibration import Calibration
from selector.network.latency import Timed, time_both
from selector.pruning import before_after
from selector.pruning.before_after import compare_running
from selector.pruning.prune import prune
from selector.pruning.run_info import call_text, typed_command
from tests.networks import data, small


def test_the_call_holds_what_is_not_at_its_default() -> None:
    batches = data(6, 2)
    result = prune(
        small("plain", 8), batches, ratio=0.4, criterion="l1", rounds=2, ratios={"next": 0.5},
        test_batches=data(6, 2, seed=3), recalibrate=True,
    )  # fmt: skip
    assert result.report.run is not None
    assert result.report.run.call == (
        "selector.prune(model, batches, ratio=0.4, criterion='l1', rounds=2, ratios={'next': 0.5},"
        " test_batches=<list>)"
    )


def test_the_call_can_be_made_again() -> None:
    model, batches = small("plain", 8, norm=True), data(6, 2)
    first = prune(model, batches, ratio=0.4, criterion="fisher", rounds=2, round_to=2)
    assert first.report.run is not None
    names = {"selector": selector, "model": model, "batches": batches}
    again = eval(first.report.run.call, names)
    assert again.plan == first.plan


@pytest.mark.parametrize("value", [np.zeros(3), torch.zeros(3), [torch.zeros(3)], (np.zeros(2),)])
def test_arrays_are_named_by_their_kind(value: object) -> None:
    def prune(model: object, *, images: object = None) -> None: ...

    text = call_text(prune, {"model": None, "images": value})
    assert re.fullmatch(r"selector\.prune\(model, images=<\w+>\)", text)


def test_a_function_is_named(tmp_path: Path) -> None:
    def prune(model: object, *, finetune: object = None, checkpoint: object = None) -> None: ...

    given = {"model": None, "finetune": data, "checkpoint": Path("states")}
    assert call_text(prune, given) == "selector.prune(model, finetune=data, checkpoint='states')"


@pytest.mark.parametrize(
    "arguments",
    [[], ["train.py", "--key", "secret"], ["-c"], ["/opt/pytest/__main__.py", "-q"]],
)
def test_other_programs_keep_their_command_private(arguments: list[str]) -> None:
    assert typed_command(arguments) is None


def test_our_command_is_as_it_was_typed() -> None:
    typed = ["prune", "--model", "nets:small", "--data", "my images"]
    said = "saliency-selector prune --model nets:small --data 'my images'"
    assert typed_command(["/usr/local/bin/saliency-selector", *typed]) == said
    assert typed_command(["/site-packages/selector/cli/__main__.py", *typed]) == said


def test_layers_are_those_of_both_networks() -> None:
    model, batches = small("depthwise", 8, norm=True), data(6, 2)
    result = prune(model, batches, ratio=0.4, criterion="l1", rounds=2)
    report = result.report
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    names = [name for name, layer in model.named_modules() if isinstance(layer, kinds)]
    assert sorted(row.layer for row in report.layers) == sorted(names)
    for row in report.layers:
        for place, network in enumerate((model, result.model)):
            layer = network.get_submodule(row.layer)
            assert row.outputs[place] == len(layer.weight)
            assert row.parameters[place] == sum(p.numel() for p in layer.parameters())
    for place in (0, 1):
        assert sum(row.macs[place] for row in report.layers) == pytest.approx(report.macs[place])
    groups = {row.group for row in report.layers if row.outputs[0] > row.outputs[1]}
    assert groups == {row.group for row in report.rows}


def test_rounds_know_their_accuracy() -> None:
    """The last round's is that of the network, where nothing comes after it."""
    result = prune(small("plain", 8), data(6, 2), ratio=0.4, criterion="l1", rounds=2, repair=False)
    report = result.report
    assert report.steps[-1].accuracy == report.after.accuracy
    assert report.calibrated == (report.before, report.after)
    assert report.latency is not None
    assert report.footprints is not None
    assert report.footprints[1].file_bytes < report.footprints[0].file_bytes


def test_slow_networks_are_timed_by_one_image_and_few_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batches = small("plain", 8), Calibration(data(8, 8))
    footprints, timed = compare_running(model, model, batches, None)
    assert footprints is not None
    assert timed is not None
    assert timed.images == footprints[0].images == 8
    assert footprints[0] == footprints[1]
    repeats = []

    def noted(*arguments: object) -> Timed:
        repeats.append(arguments[-1])
        return time_both(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(before_after, "time_both", noted)
    monkeypatch.setattr(before_after, "BUDGET", 1e-6)
    _, slow = compare_running(model, model, batches, None)
    assert slow is not None
    assert slow.images == 1
    assert repeats == [before_after.FEWEST]
    # Where latency was the target, it is known.
    assert compare_running(model, model, batches, timed)[1] is timed
    assert repeats == [before_after.FEWEST]


def test_a_network_that_cannot_be_timed_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Timed:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(before_after, "time_both", fails)
    result = prune(small("plain", 8), data(6, 2), ratio=0.4, criterion="l1", rounds=1)
    assert result.report.latency is None
    assert result.report.rows
