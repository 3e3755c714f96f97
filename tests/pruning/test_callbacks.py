"""Whoever is called after every round is told what the report says of it."""

import csv
from pathlib import Path

import pytest
import torch

from selector.demo import calibration, network
from selector.errors import SelectorError
from selector.pruning.callbacks import CsvLog, RoundEnd, TensorBoardLog
from selector.pruning.prune import prune
from selector.pruning.result import PruningError
from tests.networks import data, small


class Noting:
    """Notes what it is told, and the network as it was then."""

    def __init__(self) -> None:
        self.ends: list[RoundEnd] = []
        self.outputs: list[torch.Tensor] = []

    def on_round_end(self, end: RoundEnd) -> None:
        self.ends.append(end)
        self.outputs.append(end.model(data()[0][0]))


class Failing:
    """Fails after the second round."""

    def on_round_end(self, end: RoundEnd) -> None:
        if end.number == 2:
            raise OSError("the disk is full")


HOW = {"criterion": "l1", "keep_macs": 0.4, "rounds": 3, "repair": False}


def test_every_round_is_told(tmp_path: Path) -> None:
    noting, log = Noting(), CsvLog(tmp_path / "rounds.csv")
    result = prune(small("plain", 8, norm=True), data(), callbacks=[noting, log], **HOW)
    report = result.report
    assert [end.number for end in noting.ends] == list(range(1, report.rounds + 1))
    assert [end.macs_kept for end in noting.ends] == [step.macs_kept for step in report.steps]
    assert [end.plan for end in noting.ends] == list(result.rounds)
    assert torch.equal(noting.outputs[-1], result.model(data()[0][0]))
    with (tmp_path / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["round"]) for row in rows] == [1, 2, 3]
    assert [float(row["loss"]) for row in rows] == [step.loss for step in report.steps]
    assert {row["predicted_nats"] for row in rows} == {""}
    share = report.parameters[1] / report.parameters[0]
    assert float(rows[-1]["parameters_kept"]) == pytest.approx(share)


def test_a_resumed_run_goes_on_in_its_log(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "rounds.csv")
    model = small("plain", 8, norm=True)
    where = {"checkpoint": tmp_path / "state"}
    with pytest.raises(PruningError, match="the disk is full"):
        prune(model, data(), callbacks=[log, Failing()], **where, **HOW)
    prune(model, data(), callbacks=[log], **where, **HOW)
    lines = (tmp_path / "rounds.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["round", "1", "2", "3"]


def test_a_callback_that_fails_leaves_what_was_reached() -> None:
    with pytest.raises(PruningError, match="the disk is full") as caught:
        prune(small("plain", 8), data(), callbacks=[Failing()], **HOW)
    assert len(caught.value.result.rounds) == 2


@pytest.mark.parametrize("wrong", [print, [print], [CsvLog], 3])
def test_what_is_no_callback_is_refused(wrong: object) -> None:
    with pytest.raises(SelectorError, match="callbacks must be a list of objects with a method"):
        prune(small("plain", 8), data(), callbacks=wrong, **HOW)


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "absent" / "rounds.csv")
    with pytest.raises(PruningError, match=r"absent.rounds\.csv cannot be written"):
        prune(small("plain", 8), data(), callbacks=[log], **HOW)


@pytest.mark.slow
def test_curves_for_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    log = TensorBoardLog(tmp_path)
    report = prune(small("plain", 8), data(), callbacks=[log], **HOW).report
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    drawn = [event.value for event in events.Scalars("pruning/loss")]
    assert drawn == pytest.approx([step.loss for step in report.steps], rel=1e-6)


def test_whoever_watches_is_told_the_forecast(capsys: pytest.CaptureFixture[str]) -> None:
    how = {"keep_macs": 0.9, "rounds": 1, "repair": False}
    prune(network(), calibration(), progress=True, **how)
    assert "expected: loss" in capsys.readouterr().err
