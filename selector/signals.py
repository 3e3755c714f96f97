"""One forward and backward pass over the data -> the statistics of every group, in bounded memory.

Measured where removal acts: at the consumers' inputs, each consumer for itself. A tensor that
several layers read (a residual stream) is counted once for each consumer, with the gradient that
flows back through that consumer alone, so that the sum of activation x gradient over consumers is
the first-order loss change of removing the channel. Hooks, gradients and flags are gone afterwards.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.errors import SelectorError
from selector.groups import (
    NORMALISATION,
    Group,
    output_dimension,
    weight_of,
)
from selector.objective import Loss, Objective, check_finite
from selector.reading import (
    Batches,
    batch_size,
    check_batches,
    device_of,
    evaluating,
    read,
    run_batch,
)
from selector.taps import Moments, Pass, Sums, tapped


@dataclass(frozen=True)
class Run:
    """What the pass itself showed: the same for every group of it."""

    loss: float
    """Mean loss over the images, in nats for cross-entropy."""
    outputs: int
    """Size of the second dimension of the first output: the classes of a classifier."""
    images: int


@dataclass(frozen=True)
class Signals:
    """Everything a saliency metric may know about a group; tensors on the CPU, float64."""

    weight: Tensor
    """Producers' filters side by side, shape (channels, fan-in over all producers)."""
    weight_gradient: Tensor
    """Gradient of the mean loss over all images with respect to `weight`; same shape."""
    normalisation_scale: Tensor | None
    """Sum of abs(gamma) over the BatchNorm layers between, shape (channels,); None without any."""
    activation: Moments
    gradient: Moments
    """Of the loss of one image (nats per unit of activation), not of the batch's mean."""
    taylor: Moments
    """Of activation x gradient, in nats: the first-order effect of a gate on the channel."""
    positive_share: Tensor
    """Share of positions whose activation is above zero, shape (channels,), 0 to 1."""
    positions: float
    """Positions of one channel's map, summed over consumers."""
    random: Tensor
    """Uniform numbers, shape (channels,), from the caller's generator."""
    run: Run

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.weight)


def measure_signals(
    model: nn.Module,
    batches: Batches,
    groups: Mapping[str, Group],
    *,
    loss: Loss | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Signals]:
    """Collect the signals of all groups in one pass; the model is left exactly as found.

    Args:
        model: The network; run in evaluation mode.
        batches: Re-iterable of (inputs, targets). Splitting the same images into other batches
            changes nothing but rounding.
        groups: Group name -> group.
        loss: Mean loss of a batch; cross-entropy by default.
        generator: Source of the `random` signal; seeded with 0 by default.

    Raises:
        SelectorError: Unusable batches, a loss that is not finite, or a loss that no group's
            weights influence.
    """
    check_batches(batches)
    objective = Objective(loss)
    device = device_of(model)
    generator = generator or torch.Generator().manual_seed(0)
    sums = {name: Sums(group.channels, device) for name, group in groups.items()}
    producers = list(dict.fromkeys(layer for group in groups.values() for layer in group.producers))
    weights = [weight_of(model, layer) for layer in producers]
    gradients = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    images, total_loss, width = 0, 0.0, 0
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(_only_trained(model, weights))
        stack.enter_context(torch.enable_grad())
        pass_ = Pass()
        stack.enter_context(tapped(model, groups, sums, pass_))
        for number, (inputs, targets) in enumerate(read(model, batches)):
            pass_.images = batch_size(inputs)
            outputs = run_batch(model, inputs, number)
            value = objective.mean(outputs, targets)
            check_finite(value.detach(), number)
            batch_gradients = _differentiate(value, weights)
            for total, gradient in zip(gradients, batch_gradients, strict=True):
                if gradient is not None:
                    total.add_(gradient, alpha=pass_.images)
            for group_sums in sums.values():
                group_sums.finish_batch()
            images += pass_.images
            total_loss += float(value.detach()) * pass_.images
            width = _width(outputs)
    run = Run(total_loss / images, width, images)
    by_layer = {name: g / images for name, g in zip(producers, gradients, strict=True)}
    return {
        name: _signals(model, group, sums[name], by_layer, run, generator)
        for name, group in groups.items()
    }


def _width(outputs: object) -> int:
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor) and leaf.ndim > 1:
            return int(leaf.shape[1])
    return 0


@contextmanager
def _only_trained(model: nn.Module, weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Context in which exactly these parameters take a gradient: nothing else is computed."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _differentiate(value: Tensor, weights: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    if not value.requires_grad:
        raise SelectorError(
            "the loss does not depend on the network's weights, so no gradient exists; check that "
            "loss(outputs, targets) uses the outputs and does not detach them"
        )
    # autograd.grad leaves the caller's .grad fields alone.
    found: tuple[Tensor | None, ...] = torch.autograd.grad(value, weights, allow_unused=True)
    return found


def _signals(
    model: nn.Module,
    group: Group,
    sums: Sums,
    gradients: Mapping[str, Tensor],
    run: Run,
    generator: torch.Generator,
) -> Signals:
    if "taylor" not in sums.totals:
        raise SelectorError(
            f"the loss does not depend on group {group.name!r}, so it has no gradient; "
            f"name it in ignore, or use a loss that its outputs reach"
        )
    return Signals(
        weight=producer_rows(model, group, lambda layer: weight_of(model, layer).detach()),
        weight_gradient=producer_rows(model, group, gradients.__getitem__),
        normalisation_scale=_normalisation_scale(model, group),
        activation=sums.moments("activation", run.images),
        gradient=sums.moments("gradient", run.images),
        taylor=sums.moments("taylor", run.images),
        positive_share=(sums.positive / sums.positions).cpu(),
        positions=sums.positions / run.images,
        random=torch.rand(group.channels, generator=generator, dtype=torch.float64),
        run=run,
    )


def producer_rows(model: nn.Module, group: Group, values: Callable[[str], Tensor]) -> Tensor:
    """Rows of the producers' matrices, one for each channel, side by side; float64 on the CPU."""
    blocks = []
    for part in group.slices:
        if part.side == "out":
            dimension = output_dimension(model.get_submodule(part.layer))
            matrix = values(part.layer).movedim(dimension, 0).flatten(1).double().cpu()
            block = torch.zeros(group.channels, matrix.shape[1], dtype=torch.float64)
            blocks.append(
                block.index_add_(0, torch.tensor(part.channels), matrix[list(part.indices)])
            )
    return torch.cat(blocks, 1)


def _normalisation_scale(model: nn.Module, group: Group) -> Tensor | None:
    total = torch.zeros(group.channels, dtype=torch.float64)
    found = False
    for part in group.slices:
        layer = model.get_submodule(part.layer)
        if isinstance(layer, NORMALISATION) and layer.affine:
            scale = layer.weight.detach().abs().double().cpu()[list(part.indices)]
            total.index_add_(0, torch.tensor(part.channels), scale)
            found = True
    return total if found else None
