"""The networks that pruning is judged on, each with its images: others' and held-out ones."""

from abc import ABC, abstractmethod
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
    third_party_training,
)
from training.zoo.specs import NetworkSpec, build, fingerprint
from training.zoo.third_party import FOREIGN, foreign_batches, load_foreign

ZOO = (160, 2026)
"""Size and seed of the sample that the held-out networks are taken from."""
HELD_OUT = ("cifar10", "cifar100", "gtsrb", "fashion-mnist")
"""Their data sets, one network each."""
MAX_RATIO = 0.9
BATCH, TEST_BATCH = 64, 250
"""Images at a time."""
KEPT = 5000
"""First training images of foreign networks that are kept for calibration, never tuned on."""
DRAW = 1024
"""Images from the first of one draw of calibration images to the first of the next."""


SubjectBatches = TensorBatches | PreparedBatches


@dataclass(frozen=True)
class Subject(ABC):
    """One network that is pruned by every method, with its images."""

    name: str

    @property
    def family(self) -> str | None:
        """Its family in the zoo."""
        return None

    @property
    @abstractmethod
    def weights(self) -> str:
        """What tells these trained weights from others."""

    @abstractmethod
    def model(self, weights: Path) -> nn.Module:
        """The trained network; one of the zoo lies in the folder, or is trained now."""

    @abstractmethod
    def calibration(self, first: int, count: int) -> SubjectBatches:
        """Images to score, measure, recalibrate and repair on, from the `first` one on."""

    @abstractmethod
    def tests(self, count: int) -> SubjectBatches:
        """The first test images, as the network reads them."""

    @abstractmethod
    def training(self, count: int) -> tuple[ImageData, DatasetInfo]:
        """Images to fine-tune on, none of them for calibration, and how they are normalised.

        Raises:
            SelectorError: A network that is not fine-tuned.
        """


@dataclass(frozen=True)
class Foreign(Subject):
    """A network for CIFAR-10 of somebody else, whose training images the first ones are of."""

    @property
    def weights(self) -> str:
        """What tells these trained weights from others."""
        return FOREIGN[self.name].file

    def model(self, weights: Path) -> nn.Module:
        """The trained network."""
        return load_foreign(self.name)

    def calibration(self, first: int, count: int) -> SubjectBatches:
        """Images to score, measure, recalibrate and repair on."""
        images = load("cifar10", "train", offset=first, limit=count)
        return foreign_batches(self.name, images, BATCH)

    def tests(self, count: int) -> SubjectBatches:
        """The first test images."""
        return foreign_batches(self.name, load("cifar10", "test", limit=count), TEST_BATCH)

    def training(self, count: int) -> tuple[ImageData, DatasetInfo]:
        """Images to fine-tune on, and how they are normalised."""
        own = FOREIGN[self.name]
        data = load("cifar10", "train", offset=KEPT, limit=count)
        planes = data.images.flip(1) if own.bgr else data.images
        info = replace(DATASETS["cifar10"], mean=own.mean, std=own.std)
        return ImageData(planes, data.labels, data.classes), info


@dataclass(frozen=True)
class ThirdParty(Subject):
    """One of the third-party networks that are kept for tests, on any data set."""

    @property
    def weights(self) -> str:
        """What tells these trained weights from others."""
        return self.name

    def model(self, weights: Path) -> nn.Module:
        """The trained network."""
        return load_third_party(self.name)

    def calibration(self, first: int, count: int) -> SubjectBatches:
        """Images to score, measure, recalibrate and repair on."""
        return third_party_batches(self.name, "train", offset=first, limit=count, batch_size=BATCH)

    def tests(self, count: int) -> SubjectBatches:
        """The first test images."""
        return third_party_batches(self.name, "test", limit=count, batch_size=TEST_BATCH)

    def training(self, count: int) -> tuple[ImageData, DatasetInfo]:
        """Images to fine-tune on, and how they are normalised."""
        return third_party_training(self.name, offset=KEPT, limit=count)


@dataclass(frozen=True)
class OfZoo(Subject):
    """A network of our own zoo, which has never seen its calibration images."""

    spec: NetworkSpec

    @property
    def family(self) -> str:
        """Its family in the zoo."""
        return self.spec.family

    @property
    def weights(self) -> str:
        """What tells these trained weights from others."""
        return fingerprint(self.spec)

    @property
    def _info(self) -> DatasetInfo:
        return DATASETS[self.spec.dataset]

    def _batches(self, images: ImageData, size: int) -> TensorBatches:
        return TensorBatches(images, batch_size=size, mean=self._info.mean, std=self._info.std)

    def model(self, weights: Path) -> nn.Module:
        """The trained network."""
        weights.mkdir(parents=True, exist_ok=True)
        return trained(self.spec, weights)

    def calibration(self, first: int, count: int) -> SubjectBatches:
        """Images to score, measure, recalibrate and repair on."""
        offset = self.spec.train_images + first
        unseen = load(self.spec.dataset, "train", offset=offset, limit=count)
        return self._batches(unseen, BATCH)

    def tests(self, count: int) -> SubjectBatches:
        """The first test images."""
        return self._batches(load(self.spec.dataset, "test", limit=count), TEST_BATCH)

    def training(self, count: int) -> tuple[ImageData, DatasetInfo]:
        """Images to fine-tune on, and how they are normalised."""
        limit = min(count, self.spec.train_images)
        return load(self.spec.dataset, "train", limit=limit), self._info


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
    every: dict[str, Subject] = {name: Foreign(name) for name in FOREIGN}
    if third_party_folder() is not None:
        every |= {
            name: ThirdParty(name)
            for name, info in third_party_networks("test").items()
            if info.dataset != IMAGENET and missing_images(name) is None
        }
    every |= {spec.name: OfZoo(spec.name, spec) for spec in held_out_specs(data)}
    wanted = list(every) if names is None else list(names)
    for name in wanted:
        if name not in every:
            raise SelectorError(f"unknown network {name!r}; known: {', '.join(every)}")
    return [every[name] for name in wanted]


@cache
def calibration(subject: Subject, count: int, draw: int = 0) -> SubjectBatches:
    """Calibration images of a network, read once.

    Args:
        subject: The network.
        count: Images.
        draw: Which images; those of two draws differ.
    """
    return subject.calibration(draw * DRAW, count)


@cache
def test_images(subject: Subject, count: int) -> Images:
    """The first `count` test images, as the network reads them, read once."""
    return laid_out(subject.tests(count))


@cache
def training_images(subject: Subject, count: int) -> tuple[ImageData, DatasetInfo]:
    """Images to fine-tune on, read once.

    Raises:
        SelectorError: A network that is not fine-tuned.
    """
    return subject.training(count)
