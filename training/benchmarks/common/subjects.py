"""The networks that pruning is judged on, each with its images: others' and held-out ones."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from selector.data.image_data import ImageData, TensorBatches
from selector.errors import SelectorError
from selector.network.tracing import find_groups
from selector.planning.limits import Widths
from selector.planning.stage import Stage
from selector.planning.target import Target
from training.benchmarks.common.curves import LOW
from training.campaign.tasks import trained
from training.datasets.catalogue import DATASETS, DatasetInfo, load
from training.reporting.accuracy import Images, laid_out
from training.zoo.sampling import sample_zoo
from training.zoo.shared_third_party import (
    IMAGENET,
    PreparedBatches,
    load_third_party,
    missing_images,
    third_party_batches,
    third_party_folder,
    third_party_networks,
)
from training.zoo.specs import NetworkSpec, build, fingerprint
from training.zoo.third_party import FOREIGN, foreign_batches, load_foreign

ZOO = (160, 2026)
"""Size and seed of the sample that the held-out networks are taken from."""
HELD_OUT = ("cifar10", "cifar100", "gtsrb", "fashion-mnist")
"""Their data sets, one network each."""
MAX_RATIO = 0.9
BATCH = 64
"""Calibration images at a time."""
KEPT = 5000
"""First training images of foreign networks that are kept for calibration, never tuned on."""
DRAW = 1024
"""Images from the first of one draw of calibration images to the first of the next."""


@dataclass(frozen=True)
class Subject:
    """One network that is pruned by every method."""

    name: str
    spec: NetworkSpec | None = None
    """What it is if it is one of the zoo's; None for a foreign or third-party network."""

    @property
    def is_third_party(self) -> bool:
        """Whether it is one of the third-party networks that are kept for tests."""
        return self.spec is None and self.name not in FOREIGN

    @property
    def family(self) -> str | None:
        """Its family in the zoo."""
        return self.spec.family if self.spec else None

    @property
    def weights(self) -> str:
        """What tells these trained weights from others."""
        if self.is_third_party:
            return self.name
        return fingerprint(self.spec) if self.spec else FOREIGN[self.name].file

    def model(self, weights: Path) -> nn.Module:
        """The trained network; one of the zoo lies in the folder, or is trained now."""
        if self.is_third_party:
            return load_third_party(self.name)
        if self.spec is None:
            return load_foreign(self.name)
        weights.mkdir(parents=True, exist_ok=True)
        return trained(self.spec, weights)


def held_out_specs(data: Path) -> list[NetworkSpec]:
    """The zoo's held-out networks: the first of the sample that are recorded and fit.

    One for each data set, no two of a family, and the groups allow the least MACs that are asked.

    Args:
        data: Folder of the records.
    """
    chosen: dict[str, NetworkSpec] = {}
    for spec in sample_zoo(*ZOO):
        families = {other.family for other in chosen.values()}
        if spec.dataset not in HELD_OUT or spec.dataset in chosen or spec.family in families:
            continue
        if (data / spec.name).is_dir() and can_be_pruned(spec, LOW):
            chosen[spec.dataset] = spec
    return list(chosen.values())


def can_be_pruned(spec: NetworkSpec, keep_macs: float) -> bool:
    """Whether the network's groups allow that share of the MACs; weights do not matter."""
    images = torch.rand(
        4, *DATASETS[spec.dataset].shape, generator=torch.Generator().manual_seed(0)
    )
    try:
        groups = find_groups(build(spec).eval(), images)
        widths = Widths.of(groups.required(), MAX_RATIO, 1)
        Stage(groups, widths, Target("macs", keep_macs), 1.0, groups.costs).check_reachable()
    except SelectorError:
        return False
    return True


def find_subjects(data: Path, names: Iterable[str] | None = None) -> list[Subject]:
    """The foreign networks, third-party ones for tests, and held-out ones, or those of these names.

    Third-party networks for ImageNet are left out: a curve of one takes hours.

    Raises:
        SelectorError: An unknown name.
    """
    every = {name: Subject(name) for name in FOREIGN}
    if third_party_folder() is not None:
        every |= {
            name: Subject(name)
            for name, info in third_party_networks("test").items()
            if info.dataset != IMAGENET and missing_images(name) is None
        }
    every |= {spec.name: Subject(spec.name, spec) for spec in held_out_specs(data)}
    wanted = list(every) if names is None else list(names)
    for name in wanted:
        if name not in every:
            raise SelectorError(f"unknown network {name!r}; known: {', '.join(every)}")
    return [every[name] for name in wanted]


@cache
def calibration(subject: Subject, count: int, draw: int = 0) -> TensorBatches | PreparedBatches:
    """Images to score, measure, recalibrate and repair on.

    A network of the zoo has never seen them; of others' networks, all but the test images may have
    been trained on, and these are the first training images.

    Args:
        subject: The network.
        count: Images.
        draw: Which images; those of two draws differ.
    """
    first = draw * DRAW
    if subject.is_third_party:
        return third_party_batches(
            subject.name, "train", offset=first, limit=count, batch_size=BATCH
        )
    if subject.spec is None:
        images = load("cifar10", "train", offset=first, limit=count)
        return foreign_batches(subject.name, images, BATCH)
    info = DATASETS[subject.spec.dataset]
    offset = subject.spec.train_images + first
    unseen = load(subject.spec.dataset, "train", offset=offset, limit=count)
    return TensorBatches(unseen, batch_size=BATCH, mean=info.mean, std=info.std)


@cache
def test_images(subject: Subject, count: int) -> Images:
    """The first `count` test images, as the network reads them."""
    if subject.is_third_party:
        return laid_out(third_party_batches(subject.name, "test", limit=count, batch_size=250))
    if subject.spec is None:
        return laid_out(foreign_batches(subject.name, load("cifar10", "test", limit=count), 250))
    info = DATASETS[subject.spec.dataset]
    images = load(subject.spec.dataset, "test", limit=count)
    return laid_out(TensorBatches(images, batch_size=250, mean=info.mean, std=info.std))


@cache
def training_images(subject: Subject, count: int) -> tuple[ImageData, DatasetInfo]:
    """Images to fine-tune on, none of them for calibration, and how they are normalised.

    Raises:
        SelectorError: A third-party network, which prepares its images in its own way.
    """
    if subject.is_third_party:
        raise SelectorError(f"{subject.name} is not fine-tuned; take a foreign network")
    if subject.spec is not None:
        limit = min(count, subject.spec.train_images)
        info = DATASETS[subject.spec.dataset]
        return load(subject.spec.dataset, "train", limit=limit), info
    own = FOREIGN[subject.name]
    data = load("cifar10", "train", offset=KEPT, limit=count)
    planes = data.images.flip(1) if own.bgr else data.images
    info = replace(DATASETS["cifar10"], mean=own.mean, std=own.std)
    return ImageData(planes, data.labels, data.classes), info
