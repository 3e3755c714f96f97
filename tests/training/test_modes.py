"""The benchmark of ways to measure a removal: what it measures, and what its table says."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.networks import CLASSES, data, small
from training.benchmarks.labels import mode_cases, mode_runs, modes
from training.benchmarks.labels.mode_runs import MODES, READINGS, TRUTHS, DecisionRow, ModeRun

NAME = "made"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A small network and noise in place of a third party's network and its images."""
    model = small("residual", 8, norm=True).float()
    parts = {
        name: data(96, 32, seed=seed, dtype=torch.float32)
        for seed, name in enumerate(("calibration_of", "measuring_of", "tests_of"))
    }
    for module in (mode_cases, mode_runs):
        monkeypatch.setattr(module, "original_of", lambda _: model)
        for name, batches in parts.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda _, found=batches: found)
    monkeypatch.setattr(mode_runs, "SHARES", (0.5,))
    return model


@pytest.mark.parametrize("what", ["unpruned", "pruned"])
def test_every_candidate_is_measured_in_every_way(made: nn.Module, what: str) -> None:
    run = mode_runs.run_one(NAME, what)
    assert run.normalised
    assert len(run.decisions) == mode_runs.GROUPS
    for decision in run.decisions:
        candidates = len(decision.arms)
        assert {arm for some in decision.arms for arm in some} == {
            *mode_cases.RANKINGS,
            *mode_cases.SETS,
        }
        assert set(decision.measured) == set(modes.WAYS)
        for values in (*decision.measured.values(), *decision.truth.values()):
            assert len(values) == candidates
        assert min(decision.truth["divergence"]) >= 0


def test_what_is_true_is_the_cut_and_repaired_network(made: nn.Module) -> None:
    whole = mode_runs.judged(NAME, made)
    assert whole["divergence"] == pytest.approx(0, abs=1e-5)
    assert set(whole) == set(TRUTHS)
    assert 0 <= whole["accuracy"] <= 1
    assert whole["loss"] > 0


def test_an_oracle_routes_by_what_it_measures(made: nn.Module) -> None:
    routed = {
        what: mode_runs.run_one(NAME, f"routed by {what}") for what in ("repaired", "one arm")
    }
    assert set(routed["repaired"].routed) == {"loss", "divergence"}
    assert set(routed["one arm"].routed) == {*mode_cases.RANKINGS, *mode_cases.SETS}
    accuracies = [value for run in routed.values() for value in run.routed.values()]
    assert all(0 <= value <= 1 for value in accuracies)
    assert max(accuracies) > 0.5 / CLASSES


def decision(measured: list[float], truth: list[float]) -> DecisionRow:
    ways = dict.fromkeys(modes.WAYS, measured)
    truths = {"loss": truth, "divergence": [-value for value in truth], "accuracy": truth}
    return DecisionRow("group", 0.5, [["a"], ["b"], ["c"]], ways, ways, truths)


def test_the_table_ranks_by_what_repair_leaves(tmp_path: Path) -> None:
    agreeing = decision([1.0, 2.0, 3.0], [0.1, 0.4, 0.9])
    found = modes.scores_of(agreeing, modes.WAYS[0])
    assert found == pytest.approx(
        {
            "loss_correlation": 1.0,
            "loss_regret": 0.0,
            "divergence_correlation": -1.0,
            "divergence_regret": 0.8,
        }
    )
    runs = [
        ModeRun("one", "unpruned", 1, True, [agreeing, decision([3.0, 2.0, 1.0], [0.1, 0.4, 0.9])]),
        ModeRun("two", "unpruned", 1, False, [agreeing]),
    ]
    for mode in MODES:
        runs.append(ModeRun("two", f"routed by {mode}", 1, False, [], dict.fromkeys(READINGS, 0.8)))
    arms = dict.fromkeys(modes.CONTROLS, 0.7)
    runs += [ModeRun(name, "routed by one arm", 1, True, [], arms) for name in ("one", "two")]
    rows, summary = modes.table_of(runs)
    # Networks weigh alike, not decisions: (0 + 1) / 2.
    assert summary["plain_loss_loss_correlation"] == pytest.approx(0.5)
    assert summary["plain_loss_loss_regret"] == pytest.approx(0.2)
    assert summary["networks"] == 2
    assert summary["networks_with_batchnorm"] == 1
    # Accuracies are compared on the networks that every way has routed.
    assert summary["networks_routed"] == 1
    assert summary["repaired_divergence_routed_accuracy"] == 0.8
    assert [row[0] for row in rows][: len(modes.WAYS)] == list(modes.WAYS)
