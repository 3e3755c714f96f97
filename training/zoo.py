"""The zoo as data: every network is a family, its size, its data and its recipe."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

import torch
from torch import nn

from selector.errors import SelectorError
from selector.images import TensorBatches
from training.blocks import ACTIVATIONS
from training.datasets import DATASETS, load
from training.networks import FAMILIES, NetworkShape
from training.recipes import Recipe as Recipe
from training.recipes import TrainingSummary as TrainingSummary
from training.recipes import accuracy, follow


@dataclass(frozen=True)
class NetworkSpec:
    """One network of the zoo, before it is trained.

    Attributes:
        name: What records and files call it.
        family: One of `training.networks.FAMILIES`.
        dataset: One of `training.datasets.DATASETS`.
        width: Channels of the first stage (of one layer, for `dense`).
        depth: Blocks of every stage (hidden linear layers, for `lenet`).
        activation: One of `training.blocks.ACTIVATIONS`.
        recipe: How it is trained.
        train_images: It is trained on the first so many images; those after them it never saw.
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
    spec: NetworkSpec, *, generator: torch.Generator | None = None
) -> tuple[nn.Module, TrainingSummary]:
    """Return the trained network in eval mode, and what came of it on the whole test split.

    Args:
        spec: The network.
        generator: Chance of order and augmentation; by default it is seeded with `spec.seed`, so
            that the same spec on the same machine gives the same network.

    Raises:
        SelectorError: If `spec` cannot be built or its training diverges.
    """
    chance = generator or torch.Generator().manual_seed(spec.seed)
    model = build(spec).to(memory_format=torch.channels_last)
    info = DATASETS[spec.dataset]
    data = load(spec.dataset, "train", limit=spec.train_images)
    loss_nats, seconds = follow(spec.recipe, model, data, info, name=spec.name, generator=chance)
    model = model.to(memory_format=torch.contiguous_format)
    tests = TensorBatches(load(spec.dataset, "test"), batch_size=256, mean=info.mean, std=info.std)
    summary = TrainingSummary(spec.name, accuracy(model, tests), loss_nats, seconds)
    return model.eval(), summary


def fingerprint(spec: NetworkSpec) -> str:
    """Return 12 hexadecimal digits that change when any field of the spec or its recipe does."""
    fields = json.dumps(dataclasses.asdict(spec), sort_keys=True)
    return hashlib.sha256(fields.encode()).hexdigest()[:12]


def _cifar(family: str, width: int, depth: int, act: str, recipe: Recipe, seed: int) -> NetworkSpec:
    """Train on 9,000 of the 12,000 lossless images; the last 3,000 are for the oracle."""
    name = f"cifar10-{family}-w{width}d{depth}-{act}"
    return NetworkSpec(name, family, "cifar10", width, depth, act, recipe, 9000, seed)


def _digits(
    family: str, width: int, depth: int, act: str, recipe: Recipe, seed: int
) -> NetworkSpec:
    """Train on 800 of the 1,297 digits; the last 497 are for the oracle."""
    name = f"digits-{family}-w{width}d{depth}-{act}"
    return NetworkSpec(name, family, "digits", width, depth, act, recipe, 800, seed)


_SGD = Recipe(epochs=8, learning_rate=0.08)
_SGD_GENTLE = Recipe(epochs=10, learning_rate=0.03)
_SGD_SMOOTH = Recipe(epochs=8, learning_rate=0.08, label_smoothing=0.1)
_SGD_LONG = Recipe(epochs=10, learning_rate=0.1, weight_decay=2e-4)
_ADAM = Recipe(epochs=9, learning_rate=2e-3, weight_decay=0.02, optimizer="adamw")
_ADAM_BOLD = Recipe(epochs=9, learning_rate=8e-3, weight_decay=0.02, optimizer="adamw")
_ADAM_SHORT = Recipe(epochs=7, learning_rate=8e-3, weight_decay=0.02, optimizer="adamw")
_ADAM_LONG = Recipe(epochs=10, learning_rate=5e-3, weight_decay=0.02, optimizer="adamw")
_DIGITS_SGD = Recipe(epochs=30, learning_rate=0.05, batch_size=32)
_DIGITS_ADAM = Recipe(
    epochs=40, learning_rate=5e-3, weight_decay=0.02, optimizer="adamw", batch_size=32
)

FIRST_ZOO: tuple[NetworkSpec, ...] = (
    _cifar("plain", 16, 2, "relu", _SGD_GENTLE, 1),
    _cifar("plain_bn", 16, 2, "relu", _SGD, 2),
    _cifar("plain_bn", 24, 1, "silu", _ADAM_BOLD, 3),
    _cifar("nin", 16, 2, "relu", _SGD_SMOOTH, 4),
    _cifar("residual", 8, 2, "relu", _SGD, 5),
    _cifar("residual", 12, 1, "silu", _SGD_SMOOTH, 6),
    _cifar("bottleneck", 16, 1, "leaky_relu", _SGD_LONG, 7),
    _cifar("preact", 8, 2, "relu", _SGD, 8),
    _cifar("mobile", 8, 1, "relu", _ADAM_SHORT, 9),
    _cifar("dense", 8, 2, "relu", _ADAM_BOLD, 10),
    _cifar("squeeze", 32, 1, "relu", _ADAM_LONG, 11),
    _cifar("lenet", 12, 1, "gelu", _ADAM, 12),
    _digits("plain", 12, 2, "gelu", _DIGITS_ADAM, 13),
    _digits("nin", 12, 1, "leaky_relu", _DIGITS_SGD, 14),
    _digits("residual", 8, 1, "silu", _DIGITS_SGD, 15),
    _digits("bottleneck", 16, 2, "relu", _DIGITS_SGD, 16),
    _digits("mobile", 12, 1, "relu", _DIGITS_ADAM, 17),
    _digits("squeeze", 32, 1, "relu", _DIGITS_ADAM, 18),
)
