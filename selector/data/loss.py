"""A user's loss, image by image where it is a mean over images, else batch by batch.

A loss with class weights, `ignore_index`, boxes or pairs of images is not a mean of the losses of
single images. So on every batch the mean over images is compared with the batch's own value; where
they differ, the batch is the unit: its own value counts, weighted by its images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.data.batches import Batches, batch_size, check_batches, rows
from selector.data.checks import check_loss, check_model
from selector.data.exclusive import one_at_a_time
from selector.data.forward import evaluating, read, run_batch
from selector.data.labels import Tally, checked_logits
from selector.data.own_forward import Forward, returned_loss
from selector.data.units import Observed, Unit
from selector.errors import SelectorError

Loss = Callable[..., Tensor]
"""`loss(outputs, targets) -> scalar`, the mean over the batch."""


@dataclass(frozen=True)
class Objective:
    """The loss, as a mean over a batch and by its unit; cross-entropy by default."""

    loss: Loss | None = None
    _observed: Observed = field(default_factory=Observed, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the loss."""
        check_loss(self.loss)
        if self.loss is returned_loss:  # One number of a batch, whatever its images are.
            self._observed.unit, self._observed.settled = "batch", True

    @property
    def unit(self) -> Unit:
        """What the loss is measured by, as the batches so far have shown."""
        return self._observed.unit

    def mean(self, outputs: object, targets: object) -> Tensor:
        """Mean loss of a batch, in nats for cross-entropy; a scalar that can be differentiated.

        Raises:
            SelectorError: Labels that do not fit, a loss that is not a single number, or is a sum.
        """
        if self.loss is None:
            return functional.cross_entropy(*checked_logits(outputs, targets))
        value = self._value(outputs, targets)
        if not self._observed.settled:
            with torch.no_grad():
                self._singles(value.detach(), outputs, targets)
        return value

    def each(self, outputs: object, targets: object) -> Tensor:
        """Loss of every unit of a batch, float64: shape (images,), or (1,) if that is the batch.

        Raises:
            SelectorError: As `mean`.
        """
        singles, whole = self.measured(outputs, targets)
        return whole.reshape(1) if singles is None else singles

    def measured(self, outputs: object, targets: object) -> tuple[Tensor | None, Tensor]:
        """Losses of the images of a batch, None where the batch is the unit; and the batch's own.

        Looking at a batch may change the unit from images to batches, never back.

        Returns:
            Shape (images,) or None, and a scalar, both float64.

        Raises:
            SelectorError: As `mean`.
        """
        if self.loss is None:
            logits, labels = checked_logits(outputs, targets)
            losses = functional.cross_entropy(logits, labels, reduction="none").double()
            losses = losses.flatten(1).mean(1) if losses.ndim > 1 else losses
            return losses, losses.mean()
        value = self._value(outputs, targets).detach()
        singles = None if self.unit == "batch" else self._singles(value, outputs, targets)
        return (None if self.unit == "batch" else singles), value.double()

    def _value(self, outputs: object, targets: object) -> Tensor:
        assert self.loss is not None
        value = self.loss(outputs, targets)
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
            return value.reshape(())
        returned = f"a {type(value).__name__}"
        if isinstance(value, Tensor) and value.is_complex():
            returned = "a complex number"
        elif isinstance(value, Tensor):
            returned = f"a tensor of shape {tuple(value.shape)}"
        raise SelectorError(
            f"loss(outputs, targets) returned {returned}; it must return one number per batch, a "
            "mean, as a tensor (reduction='mean')"
        )

    def _singles(self, whole: Tensor, outputs: object, targets: object) -> Tensor | None:
        """Loss of every image alone, compared with the batch's own value; None where it has none.

        The whole batch has a loss by then, so that an error here is not the caller's.
        """
        images = batch_size(outputs, targets)
        singles = None
        try:
            found = [
                self._value(rows(outputs, i, i + 1, images), rows(targets, i, i + 1, images))
                for i in range(images)
            ]
            singles = torch.stack(found).detach().double()
        except Exception:
            singles = None
        self._observed.compare(singles, whole, self.loss)
        return singles


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
class LossChange:
    """What removing a channel set does to the mean loss."""

    nats: float
    """Mean loss after removal minus before; in nats for cross-entropy."""
    standard_error: float
    """Of that mean, from the differences paired image by image, or batch by batch where the batch
    is the unit; NaN for a single unit."""
    images: int


def summary(differences: Tensor, images: int, sizes: Tensor | None = None) -> LossChange:
    """Mean and standard error of paired differences; both 0 for the empty set.

    Args:
        differences: One for each unit, shape (units,).
        images: Images of all of them, for the empty set.
        sizes: Images of each unit, where the unit is the batch.
    """
    count = len(differences)
    if not count:
        return LossChange(0.0, 0.0, images)  # Nothing was removed.
    if sizes is None:
        error = float(differences.std()) if count > 1 else math.nan
        return LossChange(float(differences.mean()), error / count**0.5, count)
    shares = sizes.double() / sizes.sum()
    mean = float((shares * differences).sum())
    spread = float((shares**2 * (differences - mean) ** 2).sum())
    error = (spread * count / (count - 1)) ** 0.5 if count > 1 else math.nan
    return LossChange(mean, error, int(sizes.sum()))


@dataclass(frozen=True)
class Evaluation:
    """How a network does on some images."""

    loss: float
    """Mean loss, in nats for cross-entropy."""
    accuracy: float | None
    """Share of images whose highest logit is the label; None where that has no meaning."""
    images: int
    unit: Unit = "image"
    """Whether the loss is a mean over images, or one over batches weighted by their images."""
    labels: int | None = None
    """Number of different labels; None where outputs or targets are no classes."""
    guessing: float | None = None
    """Accuracy of guessing: the share of the most frequent label, or one over the classes."""


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses of a network on some batches, to be compared with those of another on the same."""

    each: Tensor | None
    """Loss of every image, shape (images,), float64; None where the batch is the unit."""
    batches: Tensor
    """Each batch's own loss, shape (batches,), float64."""
    sizes: Tensor
    """Images of each batch, shape (batches,)."""
    tally: Tally

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.sizes.sum())

    def mean(self) -> float:
        """Mean loss over images, or over batches weighted by their images."""
        if self.each is not None:
            return float(self.each.mean())
        return float((self.batches * self.sizes).sum() / self.sizes.sum())

    def change_from(self, before: "Losses") -> LossChange:
        """How much higher the loss is than before, paired by image, or else by batch."""
        if self.each is not None and before.each is not None:
            return summary(self.each - before.each, self.images)
        return summary(self.batches - before.batches, self.images, self.sizes)


@torch.no_grad()
def measure_losses(model: nn.Module, batches: Batches, objective: Objective) -> Losses:
    """Losses of a network in one reading of the data, and the share of images classified right.

    Raises:
        SelectorError: A loss that is not finite; the batch is named.
    """
    images: list[Tensor] = []
    wholes: list[Tensor] = []
    sizes: list[int] = []
    tally = Tally()
    for number, (inputs, targets) in enumerate(read(model, batches)):
        outputs = run_batch(model, inputs, number)
        each, whole = objective.measured(outputs, targets)
        if each is not None:
            check_finite(each, number)
            images.append(each.cpu())
        check_finite(whole, number)
        wholes.append(whole.cpu())
        sizes.append(batch_size(inputs, targets, outputs) if each is None else len(each))
        tally.add(outputs, targets)
    return Losses(
        torch.cat(images) if objective.unit == "image" else None,
        torch.stack(wholes),
        torch.tensor(sizes),
        tally,
    )


@one_at_a_time
def evaluate(
    model: nn.Module,
    batches: Batches,
    loss: Loss | None = None,
    *,
    forward: Forward | None = None,
) -> Evaluation:
    """Loss and accuracy of a network in evaluation mode; the mode is restored afterwards.

    A loss that is not a mean over images (class weights, ignored targets) is measured by batch: the
    mean of the batches' own values, weighted by their images.

    Args:
        model: A network; it stays as it is.
        batches: Re-iterable of (inputs, targets).
        loss: Mean loss of a batch; cross-entropy by default.
        forward: Runs the network on a batch, as for `prune`.

    Raises:
        SelectorError: Unusable batches; a loss that is a sum, not a single number, or not finite.
    """
    check_model(model)
    check_batches(batches)
    objective = Objective(loss)
    with evaluating(model):
        found = measure_losses(model, batches, objective)
    return Evaluation(
        loss=found.mean(),
        accuracy=found.tally.accuracy,
        images=found.images,
        unit=objective.unit,
        labels=found.tally.labels,
        guessing=found.tally.guessing,
    )
