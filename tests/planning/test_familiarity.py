"""A selector says whether it knows networks like this one, and then is not asked in vain."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import selector
from selector.data.calibration import Calibration
from selector.demo import calibration, network
from selector.learning.selector import SaliencySelector
from selector.oracle.oracle import Oracle
from selector.planning import candidates
from selector.planning.choose import UNLIKE, choose
from selector.planning.criteria import Verify
from selector.planning.familiarity import is_unlike
from selector.planning.forecast import foresee
from selector.pruning import rounds
from selector.statistics.passes import DataPass
from tests.networks import data, small
from tests.stages import stage_before


def asked(model: nn.Module, batches: object) -> bool:
    images = Calibration(batches)  # type: ignore[arg-type]
    return is_unlike(SaliencySelector.shipped(), model, stage_before(model, images, 0.6), images)


def counted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[int]:
    """One entry for each call of a method from here on."""
    calls: list[int] = []
    method = getattr(owner, name)

    def call(*args: Any, **options: Any) -> object:
        calls.append(1)
        return method(*args, **options)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_the_demonstration_is_known_and_a_random_network_is_not() -> None:
    assert not asked(network(), calibration())
    assert asked(small("plain", 12, norm=True), data(64, 16))


def test_it_is_judged_as_whole_descriptions_are() -> None:
    """By facts and the first batch, as by all metrics and images."""
    known = SaliencySelector.shipped()
    for model, batches in (
        (network(), calibration()),
        (small("plain", 12, norm=True), data(64, 16)),
    ):
        plan = choose(model, batches, ratio=0.25, selector=known)
        far = [c.explanation.novelty > 1 for c in plan.choices if c.explanation is not None]
        assert (np.mean(far) > 0.5) == asked(model, batches)


@pytest.mark.parametrize(("verify", "backward"), [(0, 1), (2, 2)])
def test_one_backward_pass_is_enough_where_one_arm_will_be_trusted(
    verify: Verify, backward: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, DataPass, "_gradients")
    model, batches = small("plain", 12, norm=True), data(64, 16)
    plan = choose(model, batches, keep_macs=0.6, verify=verify)
    assert len(calls) == backward * len(batches)
    assert UNLIKE in plan.warnings
    if not verify:
        assert {choice.metric for choice in plan.choices} == {
            SaliencySelector.shipped().single_best_
        }


def test_the_forecast_measures_nothing_more_than_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, Oracle, "measure")

    def watched(*args: Any) -> object:
        before = len(calls)
        found = foresee(*args)
        assert len(calls) == before > 0
        assert found is not None
        return found

    monkeypatch.setattr(rounds, "foresee", watched)
    model, batches = small("plain", 12, norm=True), data(64, 16)
    result = selector.prune(model, batches, keep_macs=0.4, rounds=3)
    assert result.report.expected is not None
    assert [plan.oracle_images > 0 for plan in result.rounds] == [True] * 3


@pytest.mark.parametrize("known", [True, False])
def test_the_unpruned_network_is_judged_once(
    known: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What pruning leaves may look strange; a run that goes on from a checkpoint asks no more."""
    said = [not known]
    monkeypatch.setattr(candidates, "is_unlike", lambda *args: said.pop())
    options: dict[str, Any] = {"keep_macs": 0.5, "rounds": 3, "checkpoint": tmp_path}

    def stop(_: object, number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    model, batches = small("plain", 12, norm=True), data(64, 16)
    with pytest.raises(selector.PruningError):
        selector.prune(model, batches, finetune=stop, **options)
    result = selector.prune(model, batches, finetune=lambda *_: None, **options)
    assert len(result.rounds) == 3
    assert ("measured" in result.report.criterion) == (not known)
    assert (UNLIKE in result.report.warnings) == (not known)


def test_the_report_says_that_the_network_is_unlike(tmp_path: Path) -> None:
    report = selector.prune(
        small("plain", 12, norm=True), data(64, 16), keep_macs=0.6, rounds=1
    ).report
    # Whole, and without a channel of each of two groups at least; the forecast's count, too.
    assert report.oracle_images >= 32 * 3
    assert UNLIKE in report.warnings
    report.save_html(tmp_path / "report.html")
    assert "unlike those that the selector learnt from" in (tmp_path / "report.html").read_text()
    assert UNLIKE not in selector.prune(network(), calibration(), keep_macs=0.6).report.warnings
