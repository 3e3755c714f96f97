"""A user's loss, as a mean and image by image; loss and accuracy of a network."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.data.batches import Batches, batch_size, check_batches, rows
from selector.data.forward import evaluating, read, run_batch
from selector.errors import SelectorError

Loss = Callable[..., Tensor]
"""`loss(outputs, targets) -> scalar`, the mean over the batch."""


@dataclass(frozen=True)
class Objective:
    """The loss, as a mean over a batch and image by image; cross-entropy unless told otherwise."""

    loss: Loss | None = None

    def mean(self, outputs: object, targets: object) -> Tensor:
        """Mean loss of a batch, in nats for cross-entropy; a scalar that can be differentiated."""
        if self.loss is None:
            return functional.cross_entropy(*_checked_logits(outputs, targets))
        value = self.loss(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise SelectorError("loss(outputs, targets) must return one number per batch, a mean")
        return value.reshape(())

    def each(self, outputs: object, targets: object) -> Tensor:
        """Loss of every image of a batch, shape (images,), float64."""
        if self.loss is None:
            logits, labels = _checked_logits(outputs, targets)
            losses = functional.cross_entropy(logits, labels, reduction="none").double()
            return losses.flatten(1).mean(1) if losses.ndim > 1 else losses
        singles = [
            self.mean(rows(outputs, i, i + 1), rows(targets, i, i + 1))
            for i in range(batch_size(outputs))
        ]
        return torch.stack(singles).double()


def _checked_logits(outputs: object, targets: object) -> tuple[Tensor, Tensor]:
    if targets is None:
        raise SelectorError(
            "the batches hold no targets (None), and cross-entropy needs labels; pass batches of "
            "(inputs, labels), loss=your_loss(outputs, targets), or ask for metrics that need no "
            "gradient"
        )
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.ndim < 2:
        raise SelectorError(
            "the default loss is cross-entropy of logits (images, classes) and a tensor of labels; "
            "for anything else pass loss=your_loss(outputs, targets)"
        )
    if not targets.is_floating_point() and targets.numel():
        classes = outputs.shape[1]
        low, high = int(targets.min()), int(targets.max())
        wrong = high if high >= classes else low
        # cross_entropy's -100, "ignore this one", is refused too: means over images would differ.
        if not 0 <= wrong < classes:
            raise SelectorError(
                f"label {wrong} is outside the network's {classes} classes (0 to {classes - 1}); "
                "check the labels, and that these weights belong to this data set"
            )
    return outputs, targets


def check_finite(values: Tensor, batch: int, what: str = "loss") -> None:
    """Refuse a loss, or an output of the network, that is not a finite number.

    Raises:
        SelectorError: Names the batch and the value.
    """
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        value = float(values[~finite].flatten()[0])
        raise SelectorError(
            f"the {what} is {'NaN' if math.isnan(value) else 'infinite'} on batch {batch}; "
            "check the weights, the normalisation of the inputs, and the targets"
        )


@dataclass(frozen=True)
class Evaluation:
    """How a network does on some images."""

    loss: float
    """Mean loss, in nats for cross-entropy."""
    accuracy: float | None
    """Share of images whose highest logit is the label; None where that has no meaning."""
    images: int


@torch.no_grad()
def image_losses(
    model: nn.Module, batches: Batches, objective: Objective
) -> tuple[Tensor, float | None]:
    """Loss of every image, shape (images,), float64, on the CPU; and the share classified right.

    Raises:
        SelectorError: A loss that is not finite; the batch is named.
    """
    losses: list[Tensor] = []
    right = judged = 0
    for number, (inputs, targets) in enumerate(read(model, batches)):
        outputs = run_batch(model, inputs, number)
        each = objective.each(outputs, targets)
        check_finite(each, number)
        losses.append(each.cpu())
        if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
            if outputs.ndim == 2 and targets.ndim == 1 and not targets.is_floating_point():
                right += int((outputs.argmax(1) == targets).sum())
                judged += len(targets)
    return torch.cat(losses), right / judged if judged else None


def evaluate(model: nn.Module, batches: Batches, loss: Loss | None = None) -> Evaluation:
    """Loss and accuracy of a network in evaluation mode; the mode is restored afterwards."""
    check_batches(batches)
    with evaluating(model):
        losses, accuracy = image_losses(model, batches, Objective(loss))
    return Evaluation(float(losses.mean()), accuracy, len(losses))


@dataclass(frozen=True)
class LossChange:
    """What removing a channel set does to the mean loss."""

    nats: float
    """Mean loss after removal minus before; in nats for cross-entropy."""
    standard_error: float
    """Of that mean, from the differences paired image by image."""
    images: int


def summary(differences: Tensor, images: int) -> LossChange:
    """Mean and standard error of paired differences, shape (images,); none of the empty set."""
    count = len(differences)
    if not count:
        return LossChange(0.0, 0.0, images)  # Nothing was removed.
    return LossChange(float(differences.mean()), float(differences.std()) / count**0.5, count)
