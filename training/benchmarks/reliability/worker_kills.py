"""Workers of a campaign that are killed: processes of this machine, of Dask and of Ray."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from training.benchmarks.reliability.kills import KillRun, remains
from training.benchmarks.reliability.scenarios import campaign_of, campaign_text, load_records
from training.campaign.backends import BackendName

TRIES, NETWORKS, JOBS = 3, 3, 2
MODULES = {"dask": "distributed", "ray": "ray"}
"""What a backend needs."""
WAIT = 300.0
"""Seconds for a worker to begin, and for a campaign to end."""


def calls() -> dict[tuple[object, ...], Callable[[], KillRun]]:
    """All kills, on the backends that are installed."""
    backends: list[BackendName] = [
        name
        for name in get_args(BackendName)
        if name not in MODULES or find_spec(MODULES[name]) is not None
    ]
    return {
        (_scenario(name), "worker", number): partial(kill_worker, name, number)
        for number in range(TRIES)
        for name in backends
    }


def kill_worker(backend: BackendName, number: int) -> KillRun:
    """Kill a worker at a drawn moment; let the campaign end, and give it again if it did not.

    Args:
        backend: Where the campaign runs.
        number: Of the try; which worker is killed and when is drawn by it.
    """
    chance = random.Random(f"worker {backend} {number}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "place"
        place.mkdir()
        begun = _Campaign.begin(backend, place)
        died = _kill_one(place, begun, chance)
        trouble = begun.trouble()
        half = ""
        try:
            load_records(place / "data")
        except Exception as error:  # Whatever it is, what was there could not be read.
            half = f"{type(error).__name__}: {error}"
        again = _Campaign.begin(backend, place).trouble() if trouble else ""
        found = "" if again else campaign_text(place)
        return KillRun(
            scenario=_scenario(backend),
            how="worker",
            number=number,
            died=died,
            lost=bool(again),
            half_written=bool(half),
            other_numbers=not again and found != _undisturbed(),
            remains=bool(remains(place)),
            error=(half + again)[-600:],
        )


def _scenario(backend: str) -> str:
    return f"campaign on {backend}"


@dataclass(frozen=True)
class _Campaign:
    """A campaign in a process of its own."""

    process: subprocess.Popen[bytes]
    output: Path

    @classmethod
    def begin(cls, backend: BackendName, place: Path) -> "_Campaign":
        """Start one."""
        asked = [sys.executable, "-W", "ignore", "-m", __name__, backend, str(place)]
        output = place.parent / f"output{time.monotonic_ns()}"
        with open(output, "wb") as file:
            return cls(subprocess.Popen(asked, stdout=file, stderr=file), output)

    def trouble(self) -> str:
        """Nothing once all networks are recorded, else what it says."""
        try:
            if self.process.wait(WAIT) == 0:
                return ""
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return self.output.read_text()[-600:] or "nothing said"


def _kill_one(place: Path, campaign: _Campaign, chance: random.Random) -> bool:
    """Kill the worker of a network that is being recorded; whether there was one."""
    late = time.monotonic() + WAIT
    later = chance.uniform(0, 1)
    while time.monotonic() < late and campaign.process.poll() is None:
        notes = sorted((place / "weights").glob("*.worker"))
        if notes and later <= 0:
            try:
                os.kill(int(chance.choice(notes).read_text().split()[0]), signal.SIGKILL)
            except (OSError, ValueError, IndexError):
                continue  # It has just ended.
            return True
        if notes:
            time.sleep(later)
            later = 0
        time.sleep(0.005)
    return False


@cache
def _undisturbed() -> str:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "place"
        place.mkdir()
        if trouble := _Campaign.begin("local", place).trouble():
            raise RuntimeError(f"a campaign fails undisturbed: {trouble}")
        return campaign_text(place)


if __name__ == "__main__":
    campaign_of(NETWORKS, Path(sys.argv[2]), jobs=JOBS, backend=sys.argv[1])  # type: ignore[arg-type]
