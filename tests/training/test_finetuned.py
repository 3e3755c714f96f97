"""The benchmark of training after pruning: the same for all starts, and honest sums."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from selector.errors import SelectorError
from selector.learning.artefact import shipped_file
from tests.training.digits_network import SUBJECT
from training.benchmarks.finetuned import report, runs
from training.benchmarks.finetuned.runs import PRUNED, REPAIRED, SCRATCH, FinetunedRun
from training.benchmarks.networks.learnt import Learnt
from training.benchmarks.networks.methods import SELECTOR
from training.benchmarks.networks.pruning_task import Folders, PruningTask, RunSettings

FEW = RunSettings(rounds=2, calibration_images=128, test_images=200, keep_macs=0.4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("finetuned")
    return Folders(root, root / "zoo", root)


def task(method: str, folders: Folders) -> PruningTask:
    shipped = shipped_file("selector")
    return PruningTask(SUBJECT, method, Learnt(shipped, shipped, "taylor"), FEW, folders)


@pytest.mark.parametrize("method", runs.METHODS)
def test_every_start_is_trained(
    method: str, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "IMAGES", 400)
    monkeypatch.setattr(runs, "LADDER", (40, 400))
    found = runs.run_one(task(method, folders))
    assert found.failed is None
    assert found.macs_kept <= 0.4
    assert found.before[PRUNED] < found.before[REPAIRED] <= found.unpruned + 0.02
    for start in (PRUNED, REPAIRED):
        assert list(found.after[start]) == [str(epochs) for epochs in runs.EPOCHS]
        assert found.after[start]["10"] > found.before[PRUNED]
    # Only the selector's architecture is trained from random weights, and asked what repair saves.
    assert (SCRATCH in found.before) == (method == SELECTOR)
    if method == SELECTOR:
        assert found.before[SCRATCH] < 0.3 < found.after[SCRATCH]["10"]
        assert found.images_for_repair in (40, 400, None)
        assert (found.seconds_for_repair is None) == (found.images_for_repair is None)


def test_training_begins_with_the_same_weights_each_time(folders: Folders) -> None:
    one = task(SELECTOR, folders)
    model = SUBJECT.model(folders.weights)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (runs._trained(one, model, PRUNED, 64, 2)[0] for _ in range(2))
    assert first == second
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_random_weights_know_nothing_of_the_trained_ones(folders: Folders) -> None:
    model = SUBJECT.model(folders.weights)
    one, again, other = (runs.with_random_weights(model, seed) for seed in (0, 0, 1))
    weights = [next(m.parameters()) for m in (model, one, again, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[1], weights[0])
    assert not torch.equal(weights[1], weights[3])


def test_a_layer_without_an_initialisation_is_named() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3))

    with pytest.raises(SelectorError, match="1: Scale"):
        runs.with_random_weights(nn.Sequential(nn.Linear(3, 3), Scale()), 0)


def made(network: str, method: str, repaired: float, draw: int = 0) -> FinetunedRun:
    start = {"1": repaired + 0.1, "5": repaired + 0.15, "10": repaired + 0.2}
    found = FinetunedRun(
        network,
        method,
        f"{draw}",
        0.5,
        draw,
        before={PRUNED: 0.2, REPAIRED: repaired},
        after={PRUNED: {"1": 0.4, "5": 0.5, "10": 0.6}, REPAIRED: start},
        repair_seconds=2.0,
    )
    if method != SELECTOR:
        return found
    return replace(
        found,
        before={**found.before, SCRATCH: 0.1},
        after={**found.after, SCRATCH: {"1": 0.2, "5": 0.3, "10": 0.5}},
        images_for_repair=320 if network == "a" else None,
        seconds_for_repair=5.0 if network == "a" else None,
    )


def test_sums_compare_what_is_there_of_every_method(tmp_path: Path) -> None:
    every = [
        made(network, method, 0.5 if method == SELECTOR else 0.45)
        for network in "abc"
        for method in runs.METHODS
    ]
    # A draw that one method did not get through, and a second draw of one network.
    lame = replace(made("a", SELECTOR, 0.9, draw=1), failed="it stopped")
    odd = [made("b", method, 0.5, draw=2) for method in runs.METHODS]
    found = report.summary_of([*every, lame, *odd])
    assert (found["networks"], found["draws"]) == (3, 1)
    assert "left out: a, since it stopped" in report._over([*every, replace(lame, draw=0)], 0.5)
    # On "b", the draw in which the methods are level halves the lead.
    lead = pytest.approx((5 + 2.5 + 5) / 3, abs=0.01)
    for key in (
        "selector_over_l1_0_epochs",
        "selector_over_l1_1_epoch",
        "selector_over_l1_5_epochs",
        "selector_over_l1_10_epochs",
    ):
        assert found[key] == lead
    assert found["selector_over_scratch"] == pytest.approx(20)
    assert found["repair_over_training"] == pytest.approx(-10)
    assert found["repair_points_0_epochs"] > found["repair_points_1_epoch"] > 10
    assert (found["repairs_asked"], found["repairs_reached"]) == (4, 1)
    assert found["images_for_one_repair_median"] == 320
    assert found["training_over_repair_seconds_median"] == 2.5
    rows = report.rows_of([*every, lame], 0.5)
    assert rows[0] == [SELECTOR, PRUNED, "20.0", "40.0", "50.0", "60.0"]
    assert [row[1] for row in rows].count(SCRATCH) == 1
    assert "320 labelled images" in report.sentences(found)[-1]


def test_nothing_is_said_before_there_are_runs() -> None:
    assert report.summary_of([made("a", runs.METHODS[1], 0.5)]) == {}
    assert report.sentences({}) == []
