"""The founding experiment: where curves cross, runs that are kept, the paper's settings."""

from pathlib import Path

import pytest

from selector.errors import SelectorError
from training.benchmarks.founding import runs as founding
from training.benchmarks.founding.methods import METHODS
from training.benchmarks.founding.runs import FoundingPoint, FoundingRun, run_missing
from training.benchmarks.founding.tables import SECOND, crossing


def test_where_a_curve_crosses_is_interpolated() -> None:
    points = [
        FoundingPoint(0.0, (0.7, 0.8), 0, 0, {}),
        FoundingPoint(0.1, (0.7, 0.76), 100, 10, {}),
        FoundingPoint(0.2, (0.6, 0.76), 200, 20, {}),
        FoundingPoint(0.3, (0.8, 0.8), 300, 30, {}),
    ]
    assert crossing(points) == pytest.approx((0.16, 160.0, 16.0))
    assert crossing(points, SECOND) is None
    assert crossing(points, (0,)) == pytest.approx((0.15, 150.0, 15.0))


def test_finished_runs_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def pretend(network: str, method: str, repeat: int) -> FoundingRun:
        asked.append((method, repeat))
        return FoundingRun(
            network, method, repeat, [FoundingPoint(0.0, (0.5, 0.25), 1, 2, {"conv1": 3})]
        )

    monkeypatch.setattr(founding, "run_one", pretend)
    lenet = ["founding_lenet-5"]
    first = run_missing(lenet, ["taylor"], 2, 1, None, tmp_path)
    again = run_missing(lenet, ["taylor", "composition"], 2, 1, None, tmp_path)
    assert asked == [("taylor", 0), ("taylor", 1), ("composition", 0), ("composition", 1)]
    assert [run for run in again if run.method == "taylor"] == first
    assert run_missing(lenet, ["fisher"], 1, 1, -1.0, tmp_path) == []
    with pytest.raises(SelectorError, match="unknown network 'lenet'; known: founding_lenet-5"):
        run_missing(["lenet"], ["taylor"], 1, 1, None, tmp_path)
    with pytest.raises(SelectorError, match="unknown method 'fish'; known: weight"):
        run_missing(lenet, ["fish"], 1, 1, None, tmp_path)


def test_the_papers_composition_is_the_default() -> None:
    paper = METHODS["composition"].myopic
    assert (paper.candidates, paper.images, paper.scoring_images) == (16, 256, 256)
    assert len(paper.pool) == 5
