"""The reliability benchmark: a small part of each in the fast suite, all of it in the slow one."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest

from selector.network.groups import Group
from selector.network.surgery import Cut, cuts_of
from selector.records.records import Records
from training.benchmarks.reliability import fuzzing, kills, load, loaders, random_networks, report
from training.benchmarks.reliability.disturbance import How
from training.benchmarks.reliability.loaders import LOADERS
from training.benchmarks.reliability.made_records import make_records
from training.benchmarks.reliability.samples import make_samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reliability") / "samples"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_samples(folder)
    loaders.SAMPLES = folder
    return folder


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.filterwarnings("ignore")
def test_changed_files_are_refused_or_read(name: str, samples: Path, tmp_path: Path) -> None:
    fuzzing.read_cases(name, 0, 8, samples, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["case"] for line in lines] == list(range(8))
    assert {line["what"] for line in lines} <= {"refused", "same", "changed"}
    assert "refused" in {line["what"] for line in lines}


def test_strange_errors_and_crashes_are_counted(samples: Path, tmp_path: Path) -> None:
    """A harness that finds nothing would pass, too."""
    how = LOADERS["plan"]

    def fails(_place: Path) -> str:
        raise KeyError("of nobody")

    strange = loaders.Loader(place=how.place, pattern="", load=fails, sealed=False)
    place = tmp_path / "plan.json"
    place.write_bytes((samples / "plan.json").read_bytes())
    assert fuzzing._read(strange, "plan", place, 0, "")["what"] == "foreign"
    changed = loaders.Loader(place=how.place, pattern="", load=lambda _: "other", sealed=True)
    assert fuzzing._read(changed, "plan", place, 0, "whole")["what"] == "unnoticed"


@pytest.mark.parametrize(("how", "number"), [("point", 0), ("power", 1), ("full", 0)])
@pytest.mark.filterwarnings("ignore")
def test_a_fit_that_is_killed_leaves_the_old_or_the_new(
    how: How, number: int, samples: Path
) -> None:
    run = kills.kill("fit", how, number, samples)
    assert run.died == (how != "full")
    assert [run.lost, run.half_written, run.other_numbers, run.remains] == [False] * 4, run


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(start, marks=() if start < 100 else pytest.mark.slow)
        for start in range(0, 200, random_networks.CHUNK)
    ],
)
def test_drawn_networks_are_cut_right_or_refused(start: int) -> None:
    run = random_networks.judge(start, start + random_networks.CHUNK)
    assert run.groups > 40
    assert (run.wrong, run.crashes) == ((), ())


def test_a_wrong_cut_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_only(removals: Iterable[tuple[Group, object]]) -> tuple[Cut, ...]:
        return cuts_of([(group, [0]) for group, _ in removals])

    monkeypatch.setattr(random_networks, "cuts_of", first_only)
    assert random_networks.judge(1, 4).wrong


def test_of_many_candidates_whole_decisions_are_drawn(tmp_path: Path) -> None:
    total = make_records(tmp_path, 3, 4, 5, 4)
    whole = Records.load(tmp_path)
    assert len(whole.candidates) == total == 240
    some = Records.load(tmp_path, most=120)
    assert len(some.candidates) == 120
    assert {p.network for p in some.networks} == {p.network for p in whole.networks}
    assert set(some.candidates) <= set(whole.candidates)
    decisions = [(c.network, c.group, c.count) for c in some.candidates]
    assert {decisions.count(one) for one in decisions} == {4}
    assert {(g.network, g.group) for g in some.groups} == {(n, g) for n, g, _ in decisions}
    assert Records.load(tmp_path, most=120).candidates == some.candidates
    assert Records.load(tmp_path, most=120, seed=1).candidates != some.candidates
    assert Records.load(tmp_path, most=10**6).candidates == whole.candidates


def test_the_table_is_written_from_what_is_there(tmp_path: Path) -> None:
    work, results = tmp_path / "work", tmp_path / "results"
    assert report.run([], None, work, results) == {}
    run = fuzzing.FuzzRun("plan", 0, 9, 5, 1, 2, 0, 0, 1, 0, 0, ("3: crash -11", "4: KeyError: x"))
    (work / "fuzzing.jsonl").write_text(json.dumps(vars(run)) + "\n")
    found = report.run([], None, work, results)
    assert (found["fuzzed"], found["fuzz_crashes"], found["fuzz_foreign"]) == (9, 1, 1)
    assert json.loads((results / "reliability.json").read_text())["summary"] == found
    # Elsewhere other parts are run: what is written of this one stays.
    other = tmp_path / "other"
    other.mkdir()
    judged = random_networks.NetworkRun(0, 2, 3, {"why": 1}, 0, (), ())
    (other / "networks.jsonl").write_text(json.dumps(vars(judged)) + "\n")
    both = report.run([], None, other, results)
    assert both == found | {name: both[name] for name in both if name.startswith("random_")}
    assert (both["random_networks"], both["fuzzed"]) == (2, 9)
    rows = json.loads((results / "reliability.json").read_text())["rows"]
    assert [row["part"] for row in rows] == ["fuzzing", "networks"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_all_of_it(tmp_path: Path) -> None:
    found = report.run(report.PARTS, None, tmp_path / "work", tmp_path)
    assert found["kills"] >= 100
    assert found["fuzzed"] >= 20_000
    assert found["random_networks"] >= 2000
    for name in ("lost", "kill_remains", "random_wrong", "random_crashes"):
        assert found[name] == 0, name
    for name in ("crashes", "foreign", "hangs", "memory", "unnoticed"):
        assert found[f"fuzz_{name}"] == 0, name
    assert found["fit_ten_million_gb"] < 8


@pytest.mark.slow
def test_repeated_calls_keep_nothing(tmp_path: Path) -> None:
    grown = load._apart("repeated", tmp_path).found
    assert grown["megabytes_grown"] < 30
    assert {k: v for k, v in grown.items() if k != "megabytes_grown" and v > 0} == {}
