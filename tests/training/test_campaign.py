"""A campaign on processes or clusters, one of whose workers is killed in the middle."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from selector.errors import SelectorError
from selector.recording.journal import Journal
from selector.records.records import Records
from training.__main__ import app
from training.campaign import campaign, tasks
from training.campaign.backends import running_on
from training.campaign.log import LOG, NetworkOutcome, exit_status, summary, write_line
from training.campaign.tasks import (
    Made,
    RecordingTask,
    foreign_task,
    named_tasks,
    own_task,
    third_party_tasks,
)
from training.datasets.catalogue import load, shared_folder
from training.zoo.catalogue import FIRST_ZOO, zoo_of
from training.zoo.families import FAMILIES
from training.zoo.recipes import Recipe
from training.zoo.sampling import sample_zoo
from training.zoo.shared_third_party import third_party_folder, third_party_networks
from training.zoo.specs import NetworkSpec
from training.zoo.third_party import FOREIGN

SPECS = [
    NetworkSpec(
        name=f"digits-plain-{seed}",
        family="plain",
        dataset="digits",
        width=6,
        depth=1,
        activation="relu",
        recipe=Recipe(epochs=2, learning_rate=0.05, batch_size=64),
        train_images=300,
        seed=seed,
    )
    for seed in range(4)
]


def kill_one_in_the_middle(weights: Path, killed: list[int], over: threading.Event) -> None:
    """Wait until some network has groups in its journal, then kill the worker that is at it."""
    while not over.is_set():
        for file in (weights / "journal").rglob("*.json"):
            note = weights / f"{file.parent.name.rsplit('-', 1)[0]}.worker"
            try:
                pid = int(note.read_text().split()[0])
            except (OSError, IndexError):
                continue
            assert pid != os.getpid()
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            return
        time.sleep(0.01)


def watch(weights: Path, together: set[frozenset[int]], over: threading.Event) -> None:
    """Note which processes are at networks at the same time."""
    while not over.is_set():
        pids = set()
        for note in weights.glob("*.worker"):
            try:
                pids.add(int(note.read_text().split()[0]))
            except (OSError, IndexError):
                continue
        together.add(frozenset(pids))
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["local", "dask", "ray"])
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_is_killed_loses_nothing(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), *sys.path]))
    if backend != "local":
        module = {"dask": "distributed", "ray": "ray"}[backend]
        pytest.importorskip(module, reason="pip install 'saliency-selector[distributed]'")
    data, weights = tmp_path / "data", tmp_path / "weights"
    killed: list[int] = []
    together: set[frozenset[int]] = set()
    over = threading.Event()
    threads = [
        threading.Thread(target=kill_one_in_the_middle, args=(weights, killed, over)),
        threading.Thread(target=watch, args=(weights, together, over)),
    ]
    for thread in threads:
        thread.start()
    try:
        outcomes = campaign.run(SPECS, data, weights, jobs=2, minutes=None, backend=backend)  # type: ignore[arg-type]
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert len(killed) == 1
    # Two at a time, and not only the one that was killed.
    assert max(map(len, together)) == 2
    assert killed[0] in frozenset().union(*together)
    workers = {int(outcome.worker.split()[0]) for outcome in outcomes}
    assert workers
    assert not workers & {killed[0], os.getpid()}
    assert [outcome.status for outcome in outcomes] == ["recorded"] * len(SPECS)
    found = Records.load(data)
    assert sorted(p.network for p in found.networks) == [spec.name for spec in SPECS]
    assert not list(data.glob(".*"))
    assert not list((weights / "journal").iterdir())
    assert not list(weights.glob("*.worker"))
    # As if nothing had happened.
    again = campaign.run(SPECS[:1], tmp_path / "other", tmp_path / "w", jobs=1, minutes=None)
    assert again[0].done
    alone = Records.load(tmp_path / "other")
    name = SPECS[0].name
    assert alone.candidates == found.of_networks([name]).candidates


def deadly(_weights: Path, _device: torch.device) -> Made:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_network_that_kills_its_workers_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), *sys.path]))
    killer = RecordingTask("killer", "made", "digits", "own", 0, deadly)
    outcomes = campaign.run(
        [killer, *SPECS[:3]], tmp_path / "data", tmp_path / "w", jobs=2, minutes=None
    )
    assert [o.status for o in outcomes] == ["failed", "recorded", "recorded", "recorded"]
    assert "its worker was lost 4 times" in outcomes[0].reason
    assert not list((tmp_path / "w").glob("*.worker"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `data` with the records of two networks, and `w` with their weights."""
    folder = tmp_path_factory.mktemp("whole")
    outcomes = campaign.run(SPECS[:2], folder / "data", folder / "w", jobs=1, minutes=None)
    assert [outcome.status for outcome in outcomes] == ["recorded"] * 2
    return folder


def trained_before(whole: Path, tmp_path: Path) -> Path:
    """A folder of weights for a campaign that finds its networks trained."""
    shutil.copytree(whole / "w", tmp_path / "w")
    (tmp_path / "w" / LOG).unlink()
    return tmp_path / "w"


def lines(weights: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (weights / LOG).read_text().splitlines()]


def test_what_is_recorded_stays(whole: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(whole / "data", data)
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*.parquet")}
    more = campaign.run(SPECS[:3], data, tmp_path / "w", jobs=1, minutes=0)
    assert [o.status for o in more] == ["there", "there", "stopped"]
    assert more[2].reason == "not started: the time is up"
    assert {p: p.stat().st_mtime_ns for p in data.rglob("*.parquet")} == before
    assert exit_status(more) == 3
    assert exit_status(more[:2]) == 0


def test_what_the_killed_leave_behind_the_last_file_is_removed(whole: Path, tmp_path: Path) -> None:
    weights, name = tmp_path / "w", SPECS[0].name
    (weights / "journal" / f"{name}-{SPECS[0].seed}").mkdir(parents=True)
    for end in ("lock", "worker"):
        (weights / f"{name}.{end}").write_text("12345 gone\n")
    others = weights / "other.lock"
    others.touch()
    campaign.run(SPECS[:1], whole / "data", weights, jobs=1, minutes=0)
    assert sorted(path.name for path in weights.iterdir()) == ["journal", "other.lock"]
    assert not any((weights / "journal").iterdir())


class Counting:
    """Counts the groups that are measured, not found in a journal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: list[tuple[str, str]] = []
        keep = Journal.keep

        def counting(journal: Journal, context: str, group: str, rows):  # type: ignore[no-untyped-def]
            self.kept.append((context, group))
            return keep(journal, context, group, rows)

        monkeypatch.setattr(Journal, "keep", counting)


def test_when_the_time_is_up_a_network_stops_and_goes_on_later(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, count = trained_before(whole, tmp_path), Counting(monkeypatch)

    def clock() -> float:
        return 0.0 if len(count.kept) < 3 else 1e6

    monkeypatch.setattr(campaign, "time", SimpleNamespace(time=clock))
    stopped = campaign.run(SPECS[:2], tmp_path / "data", weights, jobs=1, minutes=1)
    assert [o.status for o in stopped] == ["stopped", "stopped"]
    assert stopped[0].reason.startswith("begun: the time is up")
    assert stopped[1].reason.startswith("not started")
    assert len(count.kept) == 3
    assert not list((tmp_path / "data").iterdir())
    monkeypatch.undo()
    count = Counting(monkeypatch)
    assert all(
        o.done for o in campaign.run(SPECS[:2], tmp_path / "data", weights, jobs=1, minutes=None)
    )
    expected, found = Records.load(whole / "data"), Records.load(tmp_path / "data")
    assert found.candidates == expected.candidates
    assert len(count.kept) == len(expected.groups) - 3


KILLED = """
import sys
from pathlib import Path
from tests.training.test_campaign import SPECS
from training.campaign import campaign
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    campaign.run(SPECS[:2], folder / "data", folder / "w", jobs=int(sys.argv[2]), minutes=None)
"""


@pytest.mark.parametrize(
    ("jobs", "kills"), [(1, 1), pytest.param(2, 4, marks=pytest.mark.slow)], ids=["one", "many"]
)
def test_a_campaign_that_is_killed_loses_the_group_in_flight_at_most(
    jobs: int, kills: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, chance = trained_before(whole, tmp_path), random.Random(jobs)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    script = tmp_path / "run.py"
    script.write_text(KILLED)
    journal, kept = weights / "journal", -1
    for _ in range(kills):
        kept = len(list(journal.rglob("[!.]*.json")))
        command = [sys.executable, str(script), str(tmp_path), str(jobs)]
        with subprocess.Popen(command, env=environment, start_new_session=True) as process:
            while len(list(journal.rglob("[!.]*.json"))) <= kept and process.poll() is None:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.1))
            os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode in (0, -signal.SIGKILL)
    names = {path.name for path in (tmp_path / "data").iterdir() if path.name[0] != "."}
    expected = Records.load(whole / "data")
    if names:
        # What is there is whole.
        assert Records.load(tmp_path / "data").candidates == expected.of_networks(names).candidates
    files = list(journal.rglob("[!.]*.json"))
    assert files
    count = Counting(monkeypatch)
    outcomes = campaign.run(SPECS[:2], tmp_path / "data", weights, jobs=1, minutes=None)
    assert all(outcome.done for outcome in outcomes)
    assert Records.load(tmp_path / "data").candidates == expected.candidates
    left = [row for row in expected.groups if row.network not in names]
    assert len(count.kept) == len(left) - len(files)
    assert not [path for path in (tmp_path / "data").iterdir() if path.name[0] == "."]


def failing(error: Exception) -> Callable[[Path, torch.device], Made]:
    def make(_weights: Path, _device: torch.device) -> Made:
        raise error

    return make


def untraceable(weights: Path, device: torch.device) -> Made:
    return Untraceable(), tasks.held_out(SPECS[0])


class Untraceable(nn.Module):
    """Fails when it is traced, as only a wrong network does."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes cannot be multiplied")


def test_a_network_that_fails_is_skipped_with_its_reason(whole: Path, tmp_path: Path) -> None:
    weights = trained_before(whole, tmp_path)
    tasks = [
        RecordingTask(
            "diverges", "made", "digits", "own", 0, failing(SelectorError("the loss became nan"))
        ),
        RecordingTask("breaks", "made", "digits", "own", 0, failing(RuntimeError("CUDA error"))),
        RecordingTask("untraceable", "made", "digits", "own", 0, untraceable),
        SPECS[0],
    ]
    outcomes = campaign.run(tasks, tmp_path / "data", weights, jobs=1, minutes=None)
    assert [o.status for o in outcomes] == ["failed", "failed", "failed", "recorded"]
    assert outcomes[0].reason == "the loss became nan"
    assert outcomes[1].reason == "RuntimeError: CUDA error"
    assert "shapes cannot be multiplied" in outcomes[2].reason
    told = lines(weights)
    assert [(line["network"], line["status"], line["reason"]) for line in told] == [
        (o.network, o.status, o.reason) for o in outcomes
    ]
    assert all(str(os.getpid()) in str(line["worker"]) for line in told)
    assert exit_status(outcomes) == 1
    text = summary(outcomes, weights)
    assert text.startswith("4 networks: 1 recorded now, 3 failed\n")
    assert "RuntimeError: CUDA error" in text
    assert str(weights / LOG) in text
    assert [p.name for p in (tmp_path / "data").iterdir()] == [SPECS[0].name]
    assert not list(weights.glob("*.worker"))


def test_a_network_below_its_bar_is_trained_and_not_recorded(whole: Path, tmp_path: Path) -> None:
    weights = trained_before(whole, tmp_path)
    tasks = [own_task(SPECS[0], bar=0.999), own_task(SPECS[1])]
    outcomes = campaign.run(tasks, tmp_path / "data", weights, jobs=1, minutes=None)
    assert [o.status for o in outcomes] == ["below", "recorded"]
    assert "the bar is 100%" in outcomes[0].reason
    assert lines(weights)[0]["status"] == "below"
    assert exit_status(outcomes) == 0
    assert "1 trained, but not recorded, being below their bar" in summary(outcomes, weights)
    assert [p.name for p in (tmp_path / "data").iterdir()] == [SPECS[1].name]
    assert (weights / f"{SPECS[0].name}.safetensors").exists()


def test_what_a_lost_worker_had_finished_counts_as_recorded(whole: Path, tmp_path: Path) -> None:
    def finishes(_weights: Path, _device: torch.device) -> Made:
        shutil.copytree(whole / "data" / SPECS[0].name, tmp_path / "data" / SPECS[0].name)
        raise RuntimeError("somebody else was faster")

    task = RecordingTask(SPECS[0].name, "plain", "digits", "own", 0, finishes)
    (outcome,) = campaign.run([task], tmp_path / "data", tmp_path / "w", jobs=1, minutes=None)
    assert (outcome.status, outcome.reason) == ("recorded", "by another worker")


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SelectorError, match=rf"absent/{LOG} cannot be written"):
        write_line(tmp_path / "absent", NetworkOutcome("a", "failed", "x"))


def test_records_of_another_schema_are_not_added_to(whole: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(whole / "data", data)
    for path in (data / SPECS[0].name).iterdir():
        table = pq.read_table(path)
        about = {**table.schema.metadata, b"schema_version": b"1"}
        pq.write_table(table.replace_schema_metadata(about), path)
    with pytest.raises(SelectorError, match=r"has records schema 1, new records have .* not mix"):
        campaign.run(SPECS[:3], data, tmp_path / "w", jobs=1, minutes=None)
    assert len(list(data.iterdir())) == 2


def test_origins_and_families_of_tasks() -> None:
    own = own_task(SPECS[0])
    assert (own.network, own.family, own.origin) == (SPECS[0].name, "plain", "own")
    families = set(FAMILIES)
    for name in FOREIGN:
        task = foreign_task(name)
        assert (task.network, task.dataset, task.origin) == (name, "cifar10-test", "foreign")
        assert task.family not in families
    with pytest.raises(SelectorError, match="unknown foreign network 'absent'"):
        foreign_task("absent")


@pytest.mark.skipif(shared_folder() is None, reason="no shared folder; set SALIENCY_SHARED")
def test_foreign_networks_are_recorded_as_such_on_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "FOREIGN_BATCH", 4)
    monkeypatch.setattr("selector.recording.record.draw_contexts", lambda *_, **__: ())
    (outcome,) = campaign.run(
        [foreign_task("founding_lenet-5")], tmp_path / "data", tmp_path / "w", jobs=1, minutes=None
    )
    assert outcome.status == "recorded", outcome.reason
    found = Records.load(tmp_path / "data")
    assert found.networks[0].origin == "foreign"
    assert found.own().networks == ()
    _, batches = foreign_task("founding_lenet-5").make(tmp_path, torch.device("cpu"))
    assert torch.equal(batches.data.images, load("cifar10", "test", limit=36).images)


def test_zoos_by_name() -> None:
    assert zoo_of("sampled", None, None, None) == sample_zoo(160, 2026)
    assert zoo_of("sampled", 5, 0, ["digits"]) == sample_zoo(5, 0, ["digits"])
    assert zoo_of("first", None, None, None) == FIRST_ZOO
    with pytest.raises(
        SelectorError, match="unknown zoo 'second'; known: sampled, thorough, first"
    ):
        zoo_of("second", None, None, None)
    with pytest.raises(SelectorError, match="--seed does nothing with --zoo first"):
        zoo_of("first", None, 0, None)


def test_the_command_tells_how_it_ended(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.__main__.zoo_of", lambda *_: SPECS[:3])
    asked = ["campaign", "--data", str(whole / "data"), "--weights", str(tmp_path), "--jobs", "1"]
    result = CliRunner().invoke(app, [*asked, "--minutes", "0"])
    assert result.exit_code == 3, result.output
    assert "3 networks: 2 were there, 1 not done, the time being up" in result.stdout
    assert "the same command goes on" in result.stdout


def test_backends_that_cannot_be_are_refused() -> None:
    with (
        pytest.raises(SelectorError, match="unknown backend 'slurm'; known: local, dask, ray"),
        running_on("slurm", None, 1),  # type: ignore[arg-type]
    ):
        pass
    with (
        pytest.raises(SelectorError, match="belongs to --backend dask or ray"),
        running_on("local", "tcp://x:1", 1),
    ):
        pass


@pytest.mark.skipif(third_party_folder() is None, reason="no third-party networks here")
def test_networks_that_others_trained_are_recorded_twice_and_never_those_for_tests() -> None:
    found = {task.network: task for task in third_party_tasks()}
    learnt = third_party_networks("learn")
    names = {task.network.removesuffix("-trained") for task in found.values()}
    assert names <= set(learnt)
    assert {task.origin for task in found.values()} == {"third_party"}
    assert len({task.family for task in found.values()}) > 5
    for name in names:
        if learnt[name].dataset == "imagenet-sample":
            assert found[f"{name}-trained"].unseen is False
            assert name not in found
        else:
            assert found[name].unseen is True
            assert found[f"{name}-trained"].unseen is False
    assert {task.mode for task in found.values()} == {"repaired"}
    some = named_tasks(list(found.values()), ["zlatasm_resnet20a_cifar10", "ethsri_colt_mnist"])
    assert [task.network for task in some] == ["zlatasm_resnet20a_cifar10", "ethsri_colt_mnist"]
    with pytest.raises(SelectorError, match="no network 'nobodys' in this zoo; known: "):
        named_tasks(some, ["nobodys"])
    # The two are of the same network on other images.
    name = "chengyuhsieh_lenet_mnist"
    made = [found[n].make(Path(), torch.device("cpu")) for n in (name, f"{name}-trained")]
    (one, first), (two, second) = made
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert len(first) == len(second) == tasks.RECORD_BATCHES
    assert not torch.equal(next(iter(first))[0], next(iter(second))[0])
