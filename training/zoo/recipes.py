"""How a network of the zoo is trained: one recipe as data, and the loop that follows it."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selector.data.forward import device_of
from selector.data.image_data import ImageData, normalised
from selector.errors import SelectorError
from training.datasets.catalogue import DatasetInfo

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
    """Result of one training run.

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
    """Train `model` in place, where it lies; return (mean loss of the last epoch in nats, seconds).

    The learning rate rises linearly over the first fifth of all steps and falls as a cosine to 0.
    Images are shifted and, where the data set allows it, mirrored at random. On a GPU they are sent
    there once, augmented there, and the network computes in bfloat16 where autocast allows it;
    `generator` stays on the CPU, so that the same images are drawn everywhere.

    Raises:
        SelectorError: If the recipe cannot be followed, or the loss becomes NaN or infinite;
            `name` says in which network.
    """
    _check(recipe, name)
    started = time.perf_counter()
    layout = memory_layout(model)
    model.to(memory_format=layout).train()
    optimizer = OPTIMIZERS[recipe.optimizer](model, recipe)
    steps = recipe.epochs * -(-len(data) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    device = device_of(model)
    data = ImageData(data.images.to(device), data.labels.to(device), data.classes)
    for epoch in range(recipe.epochs):
        total = torch.zeros((), dtype=torch.float64, device=device)
        for pixels, targets in _shuffled(data, info, recipe.batch_size, generator):
            # A copy: maps of a single channel pass for any layout, and the next would take theirs.
            inputs = pixels.clone(memory_format=layout)
            total += len(inputs) * _step(model, inputs, targets, recipe, optimizer)
            schedule.step()
        _check_loss(loss_nats := float(total) / len(data), epoch, recipe, name)
    model.to(memory_format=torch.contiguous_format)
    return loss_nats, time.perf_counter() - started


def _shuffled(
    data: ImageData, info: DatasetInfo, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all images once, augmented and normalised, with their labels, where they lie."""
    order = torch.randperm(len(data), generator=generator).to(data.labels.device)
    for rows in torch.split(order, batch_size):
        pixels = augmented(data.images[rows], mirror=info.mirror, generator=generator)
        with pixels.device:
            inputs = normalised(pixels, info.mean, info.std)
        yield inputs, data.labels[rows]


def memory_layout(model: nn.Module) -> torch.memory_format:
    """Return the layout of maps in which a network trains fastest: channels last, where it is safe.

    On a CPU it takes 10 to 40 % off the time of a step. But there, oneDNN writes beyond its memory
    when it computes the gradient of a strided 1x1 convolution of fewer than 16 such maps
    (github.com/uxlfoundation/oneDNN/issues/6035): networks with one keep the usual layout.
    """
    unsafe = device_of(model).type == "cpu" and any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels < 16
        for layer in model.modules()
    )
    return torch.contiguous_format if unsafe else torch.channels_last


def augmented(pixels: Tensor, *, mirror: bool, generator: torch.Generator) -> Tensor:
    """Return the images each shifted by up to an eighth of its size, and half of them mirrored.

    What a shift leaves open is filled by reflection. Channels come last in memory.

    Args:
        pixels: Images of shape (images, channels, height, width), on any device.
        mirror: Whether images may be mirrored.
        generator: Chance, on the CPU.
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
    rows, columns = rows.to(pixels.device), columns.to(pixels.device)
    image = torch.arange(count, device=pixels.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


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
) -> Tensor:
    """Take one step and return its loss in nats, without waiting for a GPU to know it.

    The gradient is clipped, since networks without BatchNorm need that early on.
    """
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.device.type == "cuda"):
        loss = F.cross_entropy(model(inputs), targets, label_smoothing=recipe.label_smoothing)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT)
    optimizer.step()
    return loss.detach().double()


def _check_loss(loss_nats: float, epoch: int, recipe: Recipe, name: str) -> None:
    if not math.isfinite(loss_nats):
        raise SelectorError(
            f"{name}: the loss became {loss_nats} in epoch {epoch + 1}; "
            f"lower its learning rate of {recipe.learning_rate}"
        )


def _check(recipe: Recipe, name: str) -> None:
    if recipe.optimizer not in OPTIMIZERS:
        raise SelectorError(
            f"{name}: unknown optimizer {recipe.optimizer!r}; known: {', '.join(OPTIMIZERS)}"
        )
    for field, value in (("epochs", recipe.epochs), ("batch_size", recipe.batch_size)):
        if value < 1:
            raise SelectorError(f"{name}: {field} is {value}; it must be at least 1")
