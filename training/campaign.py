"""Train and record many networks: resumable, in parallel through joblib, one folder a network."""

import dataclasses
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from joblib import Parallel, delayed
from torch import nn
from tqdm import tqdm

from selector.checkpoint import load_tensors, read_tensors, save_pruned
from selector.errors import SelectorError
from selector.files import write_text
from selector.images import TensorBatches
from selector.recording import record
from training.backends import BackendName, ReturnAs, running_on
from training.datasets import DATASETS, load
from training.zoo import NetworkSpec, build, fingerprint, train

ATTEMPTS = 5
"""Times that the rest of a campaign is begun again after workers were lost."""

RECORD_BATCHES = 9
"""Three batches each for the signals, the selection split and the evaluation split."""


@dataclass(frozen=True)
class Outcome:
    """What became of one network."""

    network: str
    done: bool
    reason: str
    """Why not, or what was done."""


def run(
    specs: Sequence[NetworkSpec],
    data: Path,
    weights: Path,
    *,
    jobs: int,
    minutes: float | None,
    backend: BackendName = "local",
    address: str | None = None,
) -> list[Outcome]:
    """Train and record what is not there yet; what is there stays.

    A worker that dies takes nothing with it: what it had measured is in the journal, and its
    network is begun again where it was.

    Args:
        specs: The networks.
        data: Folder of the records, one folder a network, each appearing whole; all workers must
            reach it.
        weights: Folder where trained weights and journals are kept, so that a killed run trains and
            measures nothing twice; all workers must reach it.
        jobs: Processes.
        minutes: No network is begun later than this; None for no limit.
        backend: Where the tasks run.
        address: Scheduler of a Dask or Ray cluster.
    """
    data, weights = data.resolve(), weights.resolve()
    data.mkdir(parents=True, exist_ok=True)
    weights.mkdir(parents=True, exist_ok=True)
    done = {s.name: Outcome(s.name, True, "was there") for s in specs if (data / s.name).exists()}
    deadline = None if minutes is None else time.time() + 60 * minutes
    begun = len(done)
    with running_on(backend, address, jobs) as how, tqdm(total=len(specs), initial=begun) as bar:
        for attempt in range(ATTEMPTS):
            left = [spec for spec in specs if spec.name not in done]
            if not left:
                break
            try:
                _attempt(left, data, weights, deadline, done, bar, how)
            except Exception as error:
                if attempt == ATTEMPTS - 1:
                    raise
                bar.write(f"a worker was lost ({type(error).__name__}); going on without it")
    return [done[spec.name] for spec in specs]


def _attempt(
    specs: Sequence[NetworkSpec],
    data: Path,
    weights: Path,
    deadline: float | None,
    done: dict[str, Outcome],
    bar: "tqdm[None]",
    how: ReturnAs,
) -> None:
    tasks = (delayed(_one)(spec, data, weights, deadline) for spec in specs)
    for outcome in Parallel(return_as=how)(tasks):
        done[outcome.network] = outcome
        bar.update()
        if not outcome.done:
            bar.write(f"{outcome.network}: {outcome.reason}")


def _one(spec: NetworkSpec, data: Path, weights: Path, deadline: float | None) -> Outcome:
    if deadline is not None and time.time() > deadline:
        return Outcome(spec.name, False, "not begun: the time is up")
    torch.set_num_threads(1)
    # For whoever wonders which process is at which network.
    note = weights / f"{spec.name}.worker"
    if (data / spec.name).exists():
        return Outcome(spec.name, True, "was there")
    write_text(note, f"{os.getpid()} {socket.gethostname()}\n")
    try:
        model = trained(spec, weights)
        records = record(
            model,
            held_out(spec),
            network=spec.name,
            family=spec.family,
            dataset=spec.dataset,
            seed=spec.seed,
            journal=weights / "journal",
        )
        records.save(data)
    except SelectorError as error:
        return Outcome(spec.name, False, str(error))
    finally:
        note.unlink(missing_ok=True)
    return Outcome(spec.name, True, f"{len(records.candidates)} candidates")


def trained(spec: NetworkSpec, weights: Path) -> nn.Module:
    """The trained network, from the folder if it was trained with this very spec, else now."""
    file, about = weights / f"{spec.name}.safetensors", weights / f"{spec.name}.json"
    if file.exists() and about.exists():
        if json.loads(about.read_text()).get("fingerprint") == fingerprint(spec):
            model = build(spec)
            load_tensors(model, read_tensors(file), file)
            return model.eval()
    model, summary = train(spec)
    save_pruned(model, file)
    about.write_text(
        json.dumps({**dataclasses.asdict(summary), "fingerprint": fingerprint(spec)}) + "\n"
    )
    return model


def held_out(spec: NetworkSpec) -> TensorBatches:
    """Images of the training file that the network never saw, in `RECORD_BATCHES` batches."""
    info = DATASETS[spec.dataset]
    batch = 88 if spec.dataset != "digits" else 55
    images = load(spec.dataset, "train", offset=spec.train_images, limit=RECORD_BATCHES * batch)
    return TensorBatches(images, batch_size=batch, mean=info.mean, std=info.std)
