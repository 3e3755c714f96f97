"""Work that is killed at drawn moments and calls, and given again: what is lost, counted."""

import random
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from training.benchmarks.reliability.disturbance import Disturbed, How, in_fork
from training.benchmarks.reliability.scenarios import SCENARIOS

TRIES: dict[How, int] = {"moment": 9, "point": 14, "power": 8, "full": 6, "clock": 1}
"""Of each scenario."""
DISTURBED = ("moment", "point", "power")
"""Those that kill."""


@dataclass(frozen=True)
class KillRun:
    """What came of one kill and the same command again."""

    scenario: str
    how: str
    number: int
    died: bool
    """Whether it was killed before it had ended."""
    lost: bool
    """The command did not go on, or went wrong in another way than by its one line."""
    half_written: bool
    """What was there after the kill could not be read."""
    other_numbers: bool
    """The result is not that of a run that nobody disturbed."""
    remains: bool
    """Files that are none of the result were left at the end."""
    error: str

    @property
    def key(self) -> tuple[object, ...]:
        """Scenario, kind of kill, and number."""
        return self.scenario, self.how, self.number

    @classmethod
    def parse(cls, line: dict[str, Any]) -> "KillRun":
        """Undo `asdict`."""
        return cls(**line)


def calls(samples: Path) -> dict[tuple[object, ...], Callable[[], KillRun]]:
    """All kills, scenarios in turns."""
    return {
        (name, how, number): partial(kill, name, how, number, samples)
        for number in range(max(TRIES.values()))
        for how, tries in TRIES.items()
        if number < tries
        for name in SCENARIOS
    }


def kill(name: str, how: How, number: int, samples: Path) -> KillRun:
    """Disturb a scenario once, look at what is there, and give the same command again.

    Args:
        name: One of `SCENARIOS`.
        how: What goes wrong.
        number: Of the try; when or where it goes wrong is drawn by it.
        samples: Folder of `make_samples`.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    scenario, chance = SCENARIOS[name], random.Random(f"{name} {how} {number}")
    undisturbed = _undisturbed(name, samples)
    with tempfile.TemporaryDirectory() as folder:
        place, errors = Path(folder) / "place", Path(folder) / "errors"
        place.mkdir()
        scenario.prepare(samples, place)
        at = chance.randrange(1, undisturbed.calls + 1)
        disturbed = Disturbed(place, how, at)
        seconds = chance.uniform(0, undisturbed.seconds) if how == "moment" else None
        work = partial(scenario.run, samples, place)
        status = in_fork(partial(disturbed.around, work), errors, seconds)
        trouble = errors.read_text() if status > 0 else ""
        foreign = status > 0 and not ("SelectorError" in trouble or "No space left" in trouble)
        half = in_fork(partial(scenario.whole, place), errors) != 0
        trouble = trouble + errors.read_text() if half else trouble
        # Whoever has seen it end does not give it again.
        again = 0 if status == 0 else in_fork(work, errors)
        trouble = trouble + errors.read_text() if again else trouble
        found = _result(name, place, errors) if again == 0 else undisturbed.result
        return KillRun(
            scenario=name,
            how=how,
            number=number,
            died=status < 0,
            lost=foreign or again != 0,
            half_written=half,
            other_numbers=found != undisturbed.result,
            remains=again == 0 and bool(remains(place)),
            error=trouble[-600:] if foreign or half or again else "",
        )


@dataclass(frozen=True)
class _Undisturbed:
    """A scenario that nothing disturbs."""

    calls: int
    seconds: float
    result: str


@cache
def _undisturbed(name: str, samples: Path) -> _Undisturbed:
    scenario = SCENARIOS[name]
    with tempfile.TemporaryDirectory() as folder:
        place, errors = Path(folder) / "place", Path(folder) / "errors"
        place.mkdir()
        scenario.prepare(samples, place)
        count = Path(folder) / "count"

        def counted() -> None:
            calls = Disturbed(place, "point", 0)
            calls.around(partial(scenario.run, samples, place))
            count.write_text(str(calls.made))

        began = time.monotonic()
        status = in_fork(counted, errors)
        seconds = time.monotonic() - began
        if status:
            raise RuntimeError(f"{name} fails undisturbed: {errors.read_text()}")
        return _Undisturbed(int(count.read_text()), seconds, _result(name, place, errors))


def _result(name: str, place: Path, errors: Path) -> str:
    written = errors.with_name("result")

    def work() -> None:
        written.write_text(SCENARIOS[name].result(place))

    return written.read_text() if in_fork(work, errors) == 0 else errors.read_text()


def remains(place: Path) -> list[Path]:
    """Files that should be gone at the end."""
    return [
        path
        for path in place.rglob("*")
        if path.name.endswith((".partial", ".lock", ".worker")) or path.name == "lock"
    ]
