"""Train and record many networks: resumable, in parallel through joblib, one folder a network."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from joblib import Parallel, delayed
from torch import nn
from tqdm import tqdm

from selector.checkpoint import load_tensors, read_tensors, save_pruned
from selector.errors import SelectorError
from selector.images import TensorBatches
from selector.recording import record
from training.datasets import DATASETS, load
from training.zoo import NetworkSpec, build, fingerprint, train

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
    specs: Sequence[NetworkSpec], data: Path, weights: Path, *, jobs: int, minutes: float | None
) -> list[Outcome]:
    """Train and record what is not there yet; what is there stays.

    Args:
        specs: The networks.
        data: Folder of the records, one folder a network, each appearing whole.
        weights: Folder where trained weights are kept, so that a killed run trains nothing twice.
        jobs: Processes.
        minutes: No network is begun later than this; None for no limit.
    """
    data.mkdir(parents=True, exist_ok=True)
    weights.mkdir(parents=True, exist_ok=True)
    open_ = [spec for spec in specs if not (data / spec.name).exists()]
    done = [Outcome(s.name, True, "was there") for s in specs if (data / s.name).exists()]
    deadline = None if minutes is None else _now() + 60 * minutes
    tasks = (delayed(_one)(spec, data, weights, deadline) for spec in open_)
    results = Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks)
    for outcome in tqdm(results, "networks", total=len(open_)):
        done.append(outcome)
        if not outcome.done:
            tqdm.write(f"{outcome.network}: {outcome.reason}")
    return done


def _now() -> float:
    # The clock of the machine: worker processes must agree with the one that began.
    return os.times().elapsed


def _one(spec: NetworkSpec, data: Path, weights: Path, deadline: float | None) -> Outcome:
    if deadline is not None and _now() > deadline:
        return Outcome(spec.name, False, "not begun: the time is up")
    torch.set_num_threads(1)
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
    batch = 128 if spec.dataset != "digits" else 55
    images = load(spec.dataset, "train", offset=spec.train_images, limit=RECORD_BATCHES * batch)
    return TensorBatches(images, batch_size=batch, mean=info.mean, std=info.std)
