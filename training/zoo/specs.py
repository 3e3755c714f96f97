"""One network of the zoo: what it is, how it is built and trained, and what identifies it."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

import torch
from torch import nn

from selector.data.image_data import TensorBatches
from selector.errors import SelectorError
from training.datasets.catalogue import DATASETS, load
from training.reporting.accuracy import accuracy
from training.zoo.blocks import ACTIVATIONS
from training.zoo.families import FAMILIES
from training.zoo.recipes import Recipe, TrainingSummary, follow
from training.zoo.skeletons import NetworkShape


@dataclass(frozen=True)
class NetworkSpec:
    """One network of the zoo, before it is trained.

    Attributes:
        name: What records and files call it.
        family: One of `training.zoo.families.FAMILIES`.
        dataset: One of `training.datasets.catalogue.DATASETS`.
        width: Channels of the first stage (of one layer, for `dense`).
        depth: Blocks of every stage (hidden linear layers, for `lenet`).
        activation: One of `training.zoo.blocks.ACTIVATIONS`.
        recipe: How it is trained.
        train_images: It is trained on this many of the first images, and on no others.
        seed: Fixes the initial weights and, unless a generator is given, the training.
    """

    name: str
    family: str
    dataset: str
    width: int
    depth: int
    activation: str
    recipe: Recipe
    train_images: int
    seed: int


def build(spec: NetworkSpec) -> nn.Module:
    """Return the untrained network, with weights drawn from `spec.seed`.

    Raises:
        SelectorError: If the family, the data set or the activation is unknown, or a size is not
            positive.
    """
    if spec.family not in FAMILIES:
        raise SelectorError(
            f"{spec.name}: unknown family {spec.family!r}; known: {', '.join(FAMILIES)}"
        )
    if spec.dataset not in DATASETS:
        raise SelectorError(
            f"{spec.name}: unknown data set {spec.dataset!r}; known: {', '.join(DATASETS)}"
        )
    if spec.activation not in ACTIVATIONS:
        raise SelectorError(
            f"{spec.name}: unknown activation {spec.activation!r}; known: {', '.join(ACTIVATIONS)}"
        )
    if spec.width < 1 or spec.depth < 1:
        raise SelectorError(
            f"{spec.name}: width {spec.width} and depth {spec.depth} must both be at least 1"
        )
    info = DATASETS[spec.dataset]
    shape = NetworkShape(
        in_channels=info.shape[0],
        classes=info.classes,
        image_size=info.shape[1],
        width=spec.width,
        depth=spec.depth,
        activation=spec.activation,
    )
    # PyTorch's layers draw from the global generator when made; leave it as it was.
    with torch.random.fork_rng(devices=[]):
        model = FAMILIES[spec.family](shape)
    initialise(model, generator=torch.Generator().manual_seed(spec.seed))
    return model


def initialise(model: nn.Module, *, generator: torch.Generator) -> None:
    """Draw all weights anew: normal, with the variance that keeps activations of equal size."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def train(
    spec: NetworkSpec,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> tuple[nn.Module, TrainingSummary]:
    """Return the trained network in eval mode, and its result on the whole test split.

    Args:
        spec: The network.
        generator: Chance of order and augmentation, on the CPU; by default it is seeded with
            `spec.seed`, so that the same spec on the same machine gives the same network, bit for
            bit on a CPU.
        device: Where it is trained; by default on a GPU if there is one. It comes back to the CPU.

    Raises:
        SelectorError: If `spec` cannot be built, wants images that are kept for the oracle, or its
            training diverges.
    """
    chance = generator or torch.Generator().manual_seed(spec.seed)
    model = build(spec).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    info = DATASETS[spec.dataset]
    if not 1 <= spec.train_images <= info.train_images:
        raise SelectorError(
            f"{spec.name}: {spec.train_images} training images; {spec.dataset} has 1 to "
            f"{info.train_images} for training, and those behind them are kept for the oracle"
        )
    data = load(spec.dataset, "train", limit=spec.train_images)
    loss_nats, seconds = follow(spec.recipe, model, data, info, name=spec.name, generator=chance)
    tests = TensorBatches(load(spec.dataset, "test"), batch_size=256, mean=info.mean, std=info.std)
    summary = TrainingSummary(spec.name, accuracy(model, tests), loss_nats, seconds)
    return model.cpu().eval(), summary


def fingerprint(spec: NetworkSpec) -> str:
    """Return 12 hexadecimal digits that change when any field of the spec or its recipe does."""
    fields = json.dumps(dataclasses.asdict(spec), sort_keys=True)
    return hashlib.sha256(fields.encode()).hexdigest()[:12]
