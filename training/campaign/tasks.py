"""What a campaign does for one network: make it, and the images on which it is recorded."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from selector.data.image_data import TensorBatches
from selector.errors import SelectorError
from selector.files import write_text
from selector.network.checkpoint import load_tensors, read_tensors, save_pruned
from selector.recording.record import Recorded
from training.datasets.catalogue import DATASETS, load
from training.zoo.shared_third_party import (
    IMAGENET,
    PreparedBatches,
    load_third_party,
    missing_images,
    third_party_batches,
    third_party_info,
    third_party_networks,
)
from training.zoo.specs import NetworkSpec, build, fingerprint, train
from training.zoo.third_party import foreign_batches, foreign_info, load_foreign

RECORD_BATCHES = 9
"""Three batches each for the signals, the selection split and the evaluation split."""
FOREIGN_BATCH = 128
IMAGENET_BATCH = 60

TRAINED = "-trained"
"""Ends the name of a network's records on images that it was trained on."""
BARS: Mapping[str, float] = {
    "cifar10": 0.75,
    "cifar100": 0.4,
    "gtsrb": 0.95,
    "fashion-mnist": 0.88,
    "digits": 0.97,
    "imagenette64": 0.7,
    "imagenette32": 0.7,
}
"""Data set -> share of its test images that a network of the zoo must get right to be recorded:
badly trained networks teach what nobody asks."""


class BelowBarError(SelectorError):
    """A network that is too badly trained to be learnt from."""


Made = tuple[nn.Module, TensorBatches | PreparedBatches]


@dataclass(frozen=True)
class RecordingTask:
    """One network to record.

    Attributes:
        network: Its name in the records.
        family: Kind of architecture.
        dataset: Where the images come from on which it is recorded.
        origin: `own`, `third_party` or `foreign`; see `ORIGINS` of the records.
        seed: Of all that recording draws.
        make: Folder of weights and device -> the trained network there, and its images.
        mode: What is measured of every candidate; see `selector.record`.
        unseen: Whether the network was not trained on these images.
    """

    network: str
    family: str
    dataset: str
    origin: str
    seed: int
    make: Callable[[Path, torch.device], Made]
    mode: Recorded = "plain"
    unseen: bool | None = None


def own_task(spec: NetworkSpec, mode: Recorded = "plain", bar: float = 0.0) -> RecordingTask:
    """A network of the zoo: trained unless its weights are there, on images it never saw.

    Args:
        spec: The network.
        mode: What is measured of every candidate.
        bar: Share of the test images that it must get right to be recorded; see `BARS`.
    """
    make = partial(_make_own, spec, bar)
    return RecordingTask(
        spec.name, spec.family, spec.dataset, "own", spec.seed, make, mode, unseen=True
    )


def third_party_tasks() -> list[RecordingTask]:
    """The third-party networks that may be learnt from, whose images are here.

    Each on images that it was not trained on, and again on images that it was: both happen to
    users. Of ImageNet there are training images alone; its networks are the slowest and come last.

    Raises:
        SelectorError: There is no folder of such networks.
    """
    tasks: list[RecordingTask] = []
    for name, info in third_party_networks("learn").items():
        if missing_images(name) is not None:
            continue
        for split in ("train",) if info.dataset == IMAGENET else ("test", "train"):
            unseen = split == "test"
            tasks.append(
                RecordingTask(
                    name if unseen else name + TRAINED,
                    info.family,
                    info.dataset,
                    "third_party",
                    zlib.crc32(name.encode()) % 10_000,
                    partial(_make_third_party, name, split),
                    "repaired",
                    unseen,
                )
            )
    return sorted(tasks, key=lambda task: (task.dataset == IMAGENET, not task.unseen))


def named_tasks(tasks: Sequence[RecordingTask], names: Sequence[str]) -> list[RecordingTask]:
    """The tasks of these names, in their order.

    Raises:
        SelectorError: A name that no task has.
    """
    known = {task.network: task for task in tasks}
    for name in names:
        if name not in known:
            raise SelectorError(f"no network {name!r} in this zoo; known: {', '.join(known)}")
    return [known[name] for name in names]


def _make_third_party(name: str, split: str, _weights: Path, device: torch.device) -> Made:
    batch = IMAGENET_BATCH if third_party_info(name).dataset == IMAGENET else FOREIGN_BATCH
    images = third_party_batches(name, split, limit=RECORD_BATCHES * batch, batch_size=batch)
    return load_third_party(name).to(device), images


def foreign_task(name: str) -> RecordingTask:
    """A network that others trained, on test images: it was trained on all others.

    Raises:
        SelectorError: If the name is unknown.
    """
    info = foreign_info(name)
    return RecordingTask(
        name, info.family, "cifar10-test", "foreign", 0, partial(_make_foreign, name)
    )


def _make_own(spec: NetworkSpec, bar: float, weights: Path, device: torch.device) -> Made:
    """Train the network, and refuse it where it stays below its bar.

    Raises:
        BelowBarError: It does; its weights are kept, so that it is not trained again.
    """
    made = trained(spec, weights, device)
    accuracy = float(json.loads((weights / f"{spec.name}.json").read_text())["test_accuracy"])
    if accuracy < bar:
        raise BelowBarError(f"{accuracy:.1%} of the test images right, and the bar is {bar:.0%}")
    return made.to(device), held_out(spec)


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
