"""Accuracy-MACs curves by their laws, and files of finished runs that are never made twice."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.benchmarks.common.curves import (
    CurvePoint,
    accuracy_at,
    area,
    first_below,
    removed_at_drop,
)
from training.reporting.run_file import Key, RunFile

shares = st.floats(0, 1)


@st.composite
def curves(draw: st.DrawFn) -> list[CurvePoint]:
    """From the unpruned network to at most 30 % of its MACs."""
    steps = draw(st.lists(st.floats(0.5, 0.95), min_size=1, max_size=8))
    macs = [1.0]
    for step in steps:
        macs.append(macs[-1] * step)
    if macs[-1] > 0.3:
        macs.append(draw(st.floats(0.05, 0.3)))
    return [CurvePoint(kept, 1 - kept, draw(shares)) for kept in macs]


def integral_in_small_steps(curve: list[CurvePoint], high: float, low: float) -> float:
    """The slow twin: the mean of many readings."""
    count = 400
    places = [low + (high - low) * (i + 0.5) / count for i in range(count)]
    found = [accuracy_at(curve, place) for place in places]
    return sum(value for value in found if value is not None) / count


@given(curves())
def test_the_area_is_the_mean_of_all_readings(curve: list[CurvePoint]) -> None:
    found = area(curve)
    assert found is not None
    assert found == pytest.approx(integral_in_small_steps(curve, 0.9, 0.3), abs=5e-3)
    assert min(p.accuracy for p in curve) - 1e-9 <= found <= max(p.accuracy for p in curve) + 1e-9


@given(curves(), st.integers(0, 6), st.floats(0.1, 0.9))
def test_a_point_between_two_others_changes_nothing(
    curve: list[CurvePoint], place: int, part: float
) -> None:
    place = min(place, len(curve) - 2)
    one, other = curve[place], curve[place + 1]
    between = CurvePoint(
        one.macs_kept + part * (other.macs_kept - one.macs_kept),
        one.weights_removed + part * (other.weights_removed - one.weights_removed),
        one.accuracy + part * (other.accuracy - one.accuracy),
    )
    longer = [*curve[: place + 1], between, *curve[place + 1 :]]
    assert area(longer) == pytest.approx(area(curve), abs=1e-9)
    assert accuracy_at(curve, between.macs_kept) == pytest.approx(between.accuracy, abs=1e-6)


def test_outside_its_ends_a_curve_says_nothing() -> None:
    short = [CurvePoint(1.0, 0.0, 0.9), CurvePoint(0.5, 0.4, 0.7)]
    assert accuracy_at(short, 0.5) == pytest.approx(0.7)
    assert accuracy_at(short, 0.75) == pytest.approx(0.8)
    assert accuracy_at(short, 0.49) is None
    assert area(short) is None
    assert area(short, low=0.5) == pytest.approx(0.78)


@given(curves(), st.floats(0.01, 0.5))
def test_weights_are_read_where_the_accuracy_first_falls(
    curve: list[CurvePoint], drop: float
) -> None:
    found = removed_at_drop(curve, drop)
    limit = curve[0].accuracy - drop
    if found is None:
        assert all(p.accuracy > limit for p in curve)
        return
    # Here the weights removed are what is missing of the MACs.
    assert accuracy_at(curve, 1 - found) == pytest.approx(limit, abs=1e-6)
    assert all(p.accuracy > limit - 1e-9 for p in curve if p.weights_removed < found)


def test_a_crossing_is_a_place_between_two_values() -> None:
    assert first_below([4.0, 3.0, 1.0, 3.0], 1.5) == pytest.approx(1.75)
    assert first_below([4.0, 3.0], 2.0) is None


@dataclass(frozen=True)
class Made:
    name: str
    number: int

    @property
    def key(self) -> Key:
        return (self.name,)


def maker(asked: list[str], names: str) -> dict[Key, Callable[[], Made]]:
    def make(name: str) -> Made:
        asked.append(name)
        return Made(name, len(asked))

    return {(name,): partial(make, name) for name in names}


def test_a_run_is_made_once(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "deep" / "runs.jsonl", lambda fields: Made(**fields))
    asked: list[str] = []
    first = file.complete(maker(asked, "ab"), jobs=1)
    again = file.complete(maker(asked, "cab"), jobs=1)
    assert asked == ["a", "b", "c"]
    assert [run.name for run in again] == ["c", "a", "b"]
    assert again[1:] == first
    assert list(file.read().values()) == [*first, again[0]]


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "runs.jsonl", lambda fields: Made(**fields))
    asked: list[str] = []
    file.complete(maker(asked, "ab"), jobs=1)
    whole = file.path.read_text()
    # Killed while it wrote the second line.
    file.path.write_text(whole[:-9])
    assert [run.name for run in file.read().values()] == ["a"]
    file.complete(maker(asked, "ab"), jobs=1)
    assert asked == ["a", "b", "b"]
    assert file.path.read_text().splitlines()[0] == whole.splitlines()[0]
    assert [run.name for run in file.read().values()] == ["a", "b"]


def test_a_run_that_fails_keeps_those_before_it(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "runs.jsonl", lambda fields: Made(**fields))
    asked: list[str] = []
    with pytest.raises(ZeroDivisionError):
        file.complete({**maker(asked, "a"), ("x",): lambda: Made("x", 1 // 0)}, jobs=1)
    assert [run.name for run in file.read().values()] == ["a"]


def test_no_run_begins_when_the_time_is_up(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "runs.jsonl", lambda fields: Made(**fields))
    asked: list[str] = []
    assert file.complete(maker(asked, "ab"), jobs=1, minutes=-1) == []
    assert asked == []
    assert not file.path.exists()
