"""Train and record many networks: resumable, in parallel through joblib, one folder a network."""

import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from joblib import Parallel, delayed
from torch import Tensor
from tqdm import tqdm

from selector.errors import SelectorError
from selector.files import write_text
from selector.recording.record import record
from selector.records.layout import FILES, SCHEMA_VERSION
from selector.records.parquet import check_versions
from training.campaign.backends import BackendName, ReturnAs, running_on
from training.campaign.log import NetworkOutcome, write_line
from training.campaign.tasks import BelowBarError, RecordingTask, own_task
from training.campaign.tasks import trained as trained
from training.zoo.specs import NetworkSpec

LOSSES = 5
"""Losses of workers, without any network done between them, after which a campaign gives up."""

JOURNAL = "journal"
"""In the folder of weights."""

BLAMED = 3
"""Losses during one network after which it is tried alone, and then skipped."""


def run(
    networks: Sequence[NetworkSpec | RecordingTask],
    data: Path,
    weights: Path,
    *,
    jobs: int,
    minutes: float | None,
    backend: BackendName = "local",
    address: str | None = None,
    device: str | None = None,
) -> list[NetworkOutcome]:
    """Train and record what is not there yet; what is there stays.

    A network that cannot be made or recorded is skipped, with the reason in its outcome and in the
    log. A worker that dies takes nothing with it: what it had measured is in the journal, and its
    network is begun again where it was.

    Args:
        networks: What to record.
        data: Folder of the records, one folder a network, each appearing whole; all workers must
            reach it.
        weights: Folder where trained weights, journals and the log are kept, so that a killed run
            trains and measures nothing twice; all workers must reach it.
        jobs: Processes; several may share a GPU.
        minutes: When they are over, networks stop after the group at hand; training that has begun
            is finished. None for no limit.
        backend: Where the tasks run.
        address: Scheduler of a Dask or Ray cluster.
        device: Where networks are trained and recorded, by default on the worker's GPUs in turn,
            if it has any.

    Raises:
        SelectorError: `data` holds records of another schema version, the backend cannot be used,
            or workers are lost again and again.
    """
    tasks = [item if isinstance(item, RecordingTask) else own_task(item) for item in networks]
    data, weights = data.resolve(), weights.resolve()
    data.mkdir(parents=True, exist_ok=True)
    weights.mkdir(parents=True, exist_ok=True)
    check_versions(data, FILES, str(SCHEMA_VERSION))
    names = [task.network for task in tasks]
    done = {n: NetworkOutcome(n, "there", "was there") for n in names if (data / n).exists()}
    for task in tasks:
        if task.network in done:
            _forget(task, weights)
    deadline = None if minutes is None else time.time() + 60 * minutes
    with (
        running_on(backend, address, jobs) as how,
        tqdm(total=len(tasks), initial=len(done), unit="network", smoothing=0) as bar,
    ):
        _Campaign(data, weights, deadline, device, how, bar, done).finish(tasks)
    return [done[name] for name in names]


@dataclass
class _Campaign:
    """A campaign while it runs: its settings, and what is done."""

    data: Path
    weights: Path
    deadline: float | None
    device: str | None
    how: ReturnAs
    bar: "tqdm[None]"
    done: dict[str, NetworkOutcome]
    blame: Counter[str] = field(default_factory=Counter)

    def finish(self, tasks: Sequence[RecordingTask]) -> None:
        """Try what is left, again after workers were lost."""
        losses = 0
        while left := [task for task in tasks if task.network not in self.done]:
            before = len(self.done)
            try:
                self._attempt(left)
            except Exception as error:
                losses = 1 if len(self.done) > before else losses + 1
                if losses == LOSSES:
                    raise SelectorError(
                        f"workers are lost again and again ({type(error).__name__}: {error}); "
                        "look after the machines, then give the same command again"
                    ) from error
                self.bar.write(f"a worker was lost ({type(error).__name__}); going on without it")
                self._one_by_one([task for task in left if task.network not in self.done])

    def _attempt(self, tasks: Sequence[RecordingTask]) -> None:
        todo = (
            delayed(_one)(task, self.data, self.weights, self.deadline, self.device, number)
            for number, task in enumerate(tasks)
        )
        for outcome in Parallel(return_as=self.how)(todo):
            self._tell(outcome)

    def _one_by_one(self, left: Sequence[RecordingTask]) -> None:
        """Try networks during which workers were lost again and again, one at a time."""
        for task in left:
            note = _note(self.weights, task)
            self.blame[task.network] += note.exists()
            note.unlink(missing_ok=True)
        for task in left:
            if self.blame[task.network] < BLAMED:
                continue
            try:
                self._attempt([task])
            except Exception as error:
                _note(self.weights, task).unlink(missing_ok=True)
                reason = f"its worker was lost {BLAMED + 1} times ({type(error).__name__})"
                self._tell(NetworkOutcome(task.network, "failed", reason))

    def _tell(self, outcome: NetworkOutcome) -> None:
        if outcome.status != "recorded" and (self.data / outcome.network).exists():
            # It was not there at first: a worker that was lost, or given up for lost, has done it.
            outcome = NetworkOutcome(
                outcome.network, "recorded", "by another worker", outcome.worker
            )
        self.done[outcome.network] = outcome
        write_line(self.weights, outcome)
        self.bar.update()
        if not outcome.done:
            self.bar.write(f"{outcome.network}: {outcome.reason}")


def _forget(task: RecordingTask, weights: Path) -> None:
    """Remove what somebody has left who was killed when a network's records were there."""
    shutil.rmtree(weights / JOURNAL / f"{task.network}-{task.seed}", ignore_errors=True)
    _note(weights, task).unlink(missing_ok=True)
    _remove_lock(task, weights)


def _remove_lock(task: RecordingTask, weights: Path) -> None:
    if os.name != "nt":  # Windows removes no file that is open.
        _lock(weights, task).unlink(missing_ok=True)


def _lock(weights: Path, task: RecordingTask) -> Path:
    """Held by the process that is at a network."""
    return weights / f"{task.network}.lock"


def _note(weights: Path, task: RecordingTask) -> Path:
    """For whoever wonders which process is at which network."""
    return weights / f"{task.network}.worker"


def _one(
    task: RecordingTask,
    data: Path,
    weights: Path,
    deadline: float | None,
    device: str | None,
    number: int,
) -> NetworkOutcome:
    worker, started = f"{os.getpid()} {socket.gethostname()}", time.time()
    if deadline is not None and started > deadline:
        return NetworkOutcome(task.network, "stopped", "not started: the time is up", worker)
    torch.set_num_threads(1)
    try:
        with FileLock(_lock(weights, task), timeout=0):
            outcome = _alone(task, data, weights, deadline, _device(device, number), worker)
            _remove_lock(task, weights)
            return outcome
    except Timeout:
        return NetworkOutcome(task.network, "elsewhere", "another worker is at it", worker)


def _alone(
    task: RecordingTask,
    data: Path,
    weights: Path,
    deadline: float | None,
    device: torch.device,
    worker: str,
) -> NetworkOutcome:
    """Record a network that no other worker is at."""
    started = time.time()
    note = _note(weights, task)
    if (data / task.network).exists():
        note.unlink(missing_ok=True)
        return NetworkOutcome(task.network, "there", "was there", worker)
    try:
        write_text(note, f"{worker}\n")
        reason = _recorded(task, data, weights, deadline, device)
        outcome = NetworkOutcome(task.network, "recorded", reason, worker, time.time() - started)
    except TimeIsUpError:
        reason = "begun: the time is up; what was measured is in the journal"
        outcome = NetworkOutcome(task.network, "stopped", reason, worker, time.time() - started)
    except BelowBarError as error:
        outcome = NetworkOutcome(task.network, "below", str(error), worker, time.time() - started)
    except SelectorError as error:
        outcome = NetworkOutcome(task.network, "failed", str(error), worker, time.time() - started)
    except Exception as error:  # One network's fault, whatever it is, must not end the campaign.
        reason = f"{type(error).__name__}: {error}"
        outcome = NetworkOutcome(task.network, "failed", reason, worker, time.time() - started)
    note.unlink(missing_ok=True)
    return outcome


def _recorded(
    task: RecordingTask, data: Path, weights: Path, deadline: float | None, device: torch.device
) -> str:
    model, batches = task.make(weights, device)
    records = record(
        model,
        batches if deadline is None else _InTime(batches, deadline),
        network=task.network,
        family=task.family,
        dataset=task.dataset,
        origin=task.origin,
        seed=task.seed,
        mode=task.mode,
        unseen=task.unseen,
        journal=weights / JOURNAL,
        output=data,
    )
    return f"{len(records.candidates)} candidates"


def _device(name: str | None, number: int) -> torch.device:
    if name is not None or not torch.cuda.is_available():
        return torch.device(name or "cpu")
    return torch.device("cuda", number % torch.cuda.device_count())


class TimeIsUpError(BaseException):
    """The slice is over. No `Exception`: nothing on the way may take it for a fault of its own."""


class _InTime:
    """Batches that end a recording when its time is up: they are read all the time."""

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]], deadline: float) -> None:
        self._batches, self._deadline = batches, deadline

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Read them.

        Raises:
            TimeIsUpError: The time is up.
        """
        for batch in self._batches:
            if time.time() > self._deadline:
                raise TimeIsUpError
            yield batch
