"""How a network of the zoo is trained: one recipe as data, and the loop that follows it."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selector.batches import ImageData, TensorBatches, normalised
from selector.errors import SelectorError
from training.datasets import DatasetInfo

_WARM_SHARE = 0.2
_LARGEST_GRADIENT = 5.0


@dataclass(frozen=True)
class Recipe:
    """The settings of one training run.

    Attributes:
        epochs: Passes over the training images.
        learning_rate: The highest learning rate, reached after a fifth of all steps.
        weight_decay: Decay of every parameter, as the optimizer defines it.
        label_smoothing: Share of every target spread over all classes.
        optimizer: One of `OPTIMIZERS`.
        batch_size: Images a step.
    """

    epochs: int
    learning_rate: float
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    optimizer: str = "sgd"
    batch_size: int = 64


@dataclass(frozen=True)
class TrainingSummary:
    """What came of one training run.

    Attributes:
        name: The network.
        test_accuracy: Share of the test images classified correctly, 0 to 1.
        train_loss_nats: Mean loss over the last epoch, augmentation and smoothing included.
        seconds: Duration of the training alone.
    """

    name: str
    test_accuracy: float
    train_loss_nats: float
    seconds: float


def _sgd(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )


def _adamw(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )


OPTIMIZERS: Mapping[str, Callable[[nn.Module, Recipe], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}


def follow(
    recipe: Recipe,
    model: nn.Module,
    data: ImageData,
    info: DatasetInfo,
    *,
    name: str,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Train `model` in place; return (mean loss of the last epoch in nats, seconds).

    The learning rate rises linearly over the first fifth of all steps and falls as a cosine to 0.
    Images are shifted and, where the data set allows it, mirrored at random.

    Raises:
        SelectorError: If the recipe cannot be followed, or the loss becomes NaN or infinite;
            `name` says in which network.
    """
    _check(recipe, name)
    started = time.perf_counter()
    optimizer = OPTIMIZERS[recipe.optimizer](model, recipe)
    steps = recipe.epochs * -(-len(data) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    model.train()
    for epoch in range(recipe.epochs):
        total = 0.0
        order = torch.randperm(len(data), generator=generator)
        for rows in torch.split(order, recipe.batch_size):
            pixels = augmented(data.images[rows], mirror=info.mirror, generator=generator)
            inputs = normalised(pixels, info.mean, info.std)
            total += len(rows) * _step(model, inputs, data.labels[rows], recipe, optimizer)
            schedule.step()
        loss_nats = total / len(data)
        if not math.isfinite(loss_nats):
            raise SelectorError(
                f"{name}: the loss became {loss_nats} in epoch {epoch + 1}; "
                f"lower its learning rate of {recipe.learning_rate}"
            )
    return loss_nats, time.perf_counter() - started


def augmented(pixels: Tensor, *, mirror: bool, generator: torch.Generator) -> Tensor:
    """Return the images each shifted by up to an eighth of its size, and half of them mirrored.

    What a shift leaves open is filled by reflection. Channels come last in memory, which the CPU
    convolves faster.

    Args:
        pixels: Images of shape (images, channels, height, width).
        mirror: Whether images may be mirrored.
        generator: Chance.
    """
    count, _, height, width = pixels.shape
    reach = max(1, height // 8)
    padded = F.pad(pixels.float(), (reach, reach, reach, reach), mode="reflect")
    down = torch.randint(2 * reach + 1, (count, 1), generator=generator)
    right = torch.randint(2 * reach + 1, (count, 1), generator=generator)
    rows = torch.arange(height) + down
    columns = torch.arange(width) + right
    if mirror:
        flipped = torch.rand(count, generator=generator) < 0.5
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
    image = torch.arange(count)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def accuracy(model: nn.Module, batches: TensorBatches) -> float:
    """Return the share of images, 0 to 1, whose largest logit is that of their label."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for inputs, targets in batches:
            right += int((model(inputs).argmax(1) == targets).sum())
    return right / len(batches.data)


def _rate(progress: float) -> float:
    if progress < _WARM_SHARE:
        return 0.05 + 0.95 * progress / _WARM_SHARE
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARM_SHARE) / (1 - _WARM_SHARE)))


def _step(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
) -> float:
    """Take one step and return its loss in nats.

    The gradient is clipped, since networks without BatchNorm need that early on.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(inputs), targets, label_smoothing=recipe.label_smoothing)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT)
    optimizer.step()
    return loss.item()


def _check(recipe: Recipe, name: str) -> None:
    if recipe.optimizer not in OPTIMIZERS:
        raise SelectorError(
            f"{name}: unknown optimizer {recipe.optimizer!r}; known: {', '.join(OPTIMIZERS)}"
        )
    for field, value in (("epochs", recipe.epochs), ("batch_size", recipe.batch_size)):
        if value < 1:
            raise SelectorError(f"{name}: {field} is {value}; it must be at least 1")
