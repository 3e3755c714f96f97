"""What a campaign does for one network: make it, and the images on which it is recorded."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from selector.data.image_data import TensorBatches
from selector.files import write_text
from selector.network.checkpoint import load_tensors, read_tensors, save_pruned
from training.datasets.catalogue import DATASETS, load
from training.zoo.specs import NetworkSpec, build, fingerprint, train
from training.zoo.third_party import foreign_batches, foreign_info, load_foreign

RECORD_BATCHES = 9
"""Three batches each for the signals, the selection split and the evaluation split."""
FOREIGN_BATCH = 128

Made = tuple[nn.Module, TensorBatches]


@dataclass(frozen=True)
class RecordingTask:
    """One network to record.

    Attributes:
        network: Its name in the records.
        family: Kind of architecture.
        dataset: Where the images come from on which it is recorded.
        origin: `own` or `foreign`.
        seed: Of all that recording draws.
        make: Folder of weights and device -> the trained network there, and its images.
    """

    network: str
    family: str
    dataset: str
    origin: str
    seed: int
    make: Callable[[Path, torch.device], Made]


def own_task(spec: NetworkSpec) -> RecordingTask:
    """A network of the zoo: trained unless its weights are there, on images it never saw."""
    return RecordingTask(
        spec.name, spec.family, spec.dataset, "own", spec.seed, partial(_make_own, spec)
    )


def foreign_task(name: str) -> RecordingTask:
    """A network that others trained, on test images: it was trained on all others.

    Raises:
        SelectorError: If the name is unknown.
    """
    info = foreign_info(name)
    return RecordingTask(
        name, info.family, "cifar10-test", "foreign", 0, partial(_make_foreign, name)
    )


def _make_own(spec: NetworkSpec, weights: Path, device: torch.device) -> Made:
    return trained(spec, weights, device).to(device), held_out(spec)


def _make_foreign(name: str, _weights: Path, device: torch.device) -> Made:
    images = load("cifar10", "test", limit=RECORD_BATCHES * FOREIGN_BATCH)
    return load_foreign(name).to(device), foreign_batches(name, images, FOREIGN_BATCH)


def trained(
    spec: NetworkSpec, weights: Path, device: torch.device | str | None = None
) -> nn.Module:
    """The trained network, from the folder if it was trained with this very spec, else now.

    Args:
        spec: The network.
        weights: Folder of `NAME.safetensors` and `NAME.json`.
        device: Where it is trained, if it is; by default on a GPU if there is one.
    """
    file, about = weights / f"{spec.name}.safetensors", weights / f"{spec.name}.json"
    if file.exists() and about.exists():
        if json.loads(about.read_text()).get("fingerprint") == fingerprint(spec):
            model = build(spec)
            load_tensors(model, read_tensors(file), file)
            return model.eval()
    model, summary = train(spec, device=device)
    save_pruned(model, file)
    # Written last: where this file exists, the weights are whole.
    write_text(
        about,
        json.dumps({**dataclasses.asdict(summary), "fingerprint": fingerprint(spec)}) + "\n",
    )
    return model


def held_out(spec: NetworkSpec) -> TensorBatches:
    """Images of the training file that the network never saw, in `RECORD_BATCHES` batches."""
    info = DATASETS[spec.dataset]
    batch = 88 if spec.dataset != "digits" else 55
    images = load(spec.dataset, "train", offset=spec.train_images, limit=RECORD_BATCHES * batch)
    return TensorBatches(images, batch_size=batch, mean=info.mean, std=info.std)
