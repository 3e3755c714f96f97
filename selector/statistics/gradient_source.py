"""What is differentiated: the loss of the labels, or the network's own softened outputs.

On images that a network was trained on, the loss of the labels is near zero, and its gradients say
little. The cross-entropy of the softened outputs, softmax(z / T), against labels drawn from them
does not vanish, and needs no labels: its mean square is the Fisher information of the softened
network.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional

from selector.data.labels import logits_of
from selector.data.loss import Objective
from selector.errors import SelectorError
from selector.statistics.curvature import cross_entropy_factor, projections

Gradients = Literal["labels", "softened"]
"""`labels`: of the loss; `softened`: of the network's own softened outputs."""

TEMPERATURE = 4.0
"""What logits are divided by before labels are drawn from them."""


class GradientSource(Protocol):
    """What is differentiated in a pass over the data."""

    @property
    def is_loss(self) -> bool:
        """Whether it is the loss of outputs and targets itself."""

    def value(self, outputs: object, targets: object, number: int) -> Tensor:
        """Mean over the images of batch `number` of what is differentiated, a scalar."""

    def projected(self, outputs: object, targets: object, signs: torch.Generator) -> list[Tensor]:
        """A factor of its curvature in the outputs times random signs; see `projections`."""

    def again(self) -> "GradientSource":
        """The same for another reading of the same data."""


@dataclass(frozen=True)
class OfLabels:
    """The loss of the outputs and targets."""

    objective: Objective
    is_loss: bool = True

    def value(self, outputs: object, targets: object, number: int) -> Tensor:
        """Mean loss of the batch."""
        return self.objective.mean(outputs, targets)

    def projected(self, outputs: object, targets: object, signs: torch.Generator) -> list[Tensor]:
        """Of the loss's Hessian."""
        return projections(self.objective, outputs, targets, signs)

    def again(self) -> "OfLabels":
        """Itself: nothing is drawn."""
        return self


@dataclass
class OfSoftenedOutputs:
    r"""Cross-entropy of softened outputs against labels that are drawn from them.

    .. math:: -\frac{1}{N} \sum_n \log p_n(y_n), \quad p_n = \mathrm{softmax}(z_n / T),
        \quad y_n \sim p_n

    Labels are drawn in the order of the images, so that other batches give the same labels.
    """

    seed: int
    is_loss: bool = False
    chance: torch.Generator = field(init=False)
    drawn: tuple[int, Tensor] | None = None
    """The last batch, and its uniform numbers: a batch that is read again keeps its labels."""

    def __post_init__(self) -> None:
        """Start with the first image."""
        self.chance = torch.Generator().manual_seed(self.seed)

    def value(self, outputs: object, targets: object, number: int) -> Tensor:
        """Mean over images, and over positions where there are several; targets are not read.

        Raises:
            SelectorError: The outputs are not logits.
        """
        logits = softened(outputs)
        if self.drawn is None or self.drawn[0] != number:
            shape = (logits.shape[0], 1, *logits.shape[2:])
            self.drawn = number, torch.rand(shape, generator=self.chance, dtype=torch.float64)
        shares = logits.detach().double().softmax(1)
        below = shares.cumsum(1) < self.drawn[1].to(logits.device)
        labels = below.sum(1).clamp_max(logits.shape[1] - 1)
        return functional.cross_entropy(logits, labels)

    def projected(self, outputs: object, targets: object, signs: torch.Generator) -> list[Tensor]:
        """Of the Hessian diag(p) - p p^T over T^2, which no label enters.

        Raises:
            SelectorError: Logits of several positions.
        """
        logits = softened(outputs).detach()
        if logits.ndim != 2:
            raise SelectorError(
                "second-order metrics with gradients='softened' take logits (images, classes), "
                f"not {tuple(logits.shape)}; leave them out, or use gradients='labels'"
            )
        drawn = torch.randint(0, 2, logits.shape, generator=signs)
        return [cross_entropy_factor(logits, (2 * drawn - 1).to(logits)) / TEMPERATURE]

    def again(self) -> "OfSoftenedOutputs":
        """The same labels, from the first image on."""
        return OfSoftenedOutputs(self.seed)


def softened(outputs: object) -> Tensor:
    """Logits over the temperature, shape (images, classes, ...).

    Raises:
        SelectorError: The outputs are not logits of at least two classes.
    """
    logits = logits_of(outputs)
    if logits is None or logits.ndim < 2 or logits.shape[1] < 2:
        given = type(outputs).__name__ if logits is None else tuple(logits.shape)
        raise SelectorError(
            "gradients='softened' needs a network whose output is one tensor of logits (images, "
            f"classes), or has such logits, not {given}; use gradients='labels', with "
            "loss=your_loss(outputs, targets)"
        )
    return logits / TEMPERATURE


def gradient_source(gradients: Gradients, objective: Objective, seed: int) -> GradientSource:
    """The source of that name.

    Args:
        gradients: As callers write it.
        objective: The loss of outputs and targets.
        seed: Of labels that are drawn.

    Raises:
        SelectorError: An unknown name.
    """
    if gradients == "labels":
        return OfLabels(objective)
    if gradients == "softened":
        return OfSoftenedOutputs(seed)
    raise SelectorError(f"unknown gradients={gradients!r}; known: {', '.join(get_args(Gradients))}")
