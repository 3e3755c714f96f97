"""A campaign on processes or clusters, one of whose workers is killed in the middle."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from selector.errors import SelectorError
from selector.records import Records
from training import campaign
from training.backends import running_on
from training.recipes import Recipe
from training.zoo import NetworkSpec

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


def kill_one_in_the_middle(weights: Path, killed: list[int]) -> None:
    """Wait until some network has groups in its journal, then kill the worker that is at it."""
    deadline = time.time() + 120
    while time.time() < deadline and not killed:
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


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["local", "dask", "ray"])
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_is_killed_loses_nothing(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    if backend != "local":
        module = {"dask": "distributed", "ray": "ray"}[backend]
        pytest.importorskip(module, reason="pip install 'saliency-selector[distributed]'")
    data, weights = tmp_path / "data", tmp_path / "weights"
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_in_the_middle, args=(weights, killed))
    killer.start()
    outcomes = campaign.run(SPECS, data, weights, jobs=2, minutes=None, backend=backend)  # type: ignore[arg-type]
    killer.join()
    assert len(killed) == 1
    assert all(outcome.done for outcome in outcomes)
    found = Records.load(data)
    assert sorted(p.network for p in found.networks) == [spec.name for spec in SPECS]
    assert not list(data.glob(".*"))
    assert not list((weights / "journal").iterdir())
    # As if nothing had happened.
    again = campaign.run(SPECS[:1], tmp_path / "other", tmp_path / "w", jobs=1, minutes=None)
    assert again[0].done
    alone = Records.load(tmp_path / "other")
    name = SPECS[0].name
    assert alone.candidates == found.of_networks([name]).candidates


def test_what_is_recorded_stays_and_time_runs_out(tmp_path: Path) -> None:
    done = campaign.run(SPECS[:1], tmp_path / "data", tmp_path / "w", jobs=1, minutes=None)
    assert [o.reason for o in done] != ["was there"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*.parquet")}
    more = campaign.run(SPECS[:2], tmp_path / "data", tmp_path / "w", jobs=1, minutes=0)
    assert [o.reason for o in more] == ["was there", "not begun: the time is up"]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*.parquet")} == before


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
