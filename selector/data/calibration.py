"""A user's calibration data as one value: batches that were checked once, and the loss."""

import math

from torch import nn

from selector.data.batches import Batches, CheckedBatches, batch_size, split_batches
from selector.data.loss import Evaluation, Loss, Objective, evaluate


class Calibration(CheckedBatches):
    """The images that everything is measured on, and the loss that measures it.

    Made once by each public function and handed on, so that a user's data is checked once: making
    it starts one reading, and the first batch is kept for every probe.

    Args:
        batches: Re-iterable of (inputs, targets).
        loss: Mean loss of a batch; cross-entropy by default.

    Raises:
        SelectorError: Batches that cannot be used; see `check_batches`.
    """

    def __init__(self, batches: Batches, loss: Loss | None = None) -> None:
        super().__init__(batches)
        self.objective = Objective(loss)
        """The loss, as a mean over a batch and by its unit; it remembers what batches showed."""

    @property
    def loss(self) -> Loss | None:
        """Mean loss of a batch; None for cross-entropy."""
        return self.objective.loss

    @property
    def unlabelled(self) -> bool:
        """Whether the first batch has no targets, and the loss is not the caller's own."""
        return self.first[1] is None and self.loss is None

    def split(self, parts: int, purpose: str) -> tuple["Calibration", ...]:
        """Disjoint parts with the same loss; the batches go to the parts in turn.

        Args:
            parts: How many.
            purpose: What they are needed for, for the message.

        Raises:
            SelectorError: Fewer batches than parts, or batches that change between readings.
        """
        found = tuple(Calibration(part, self.loss) for part in split_batches(self, parts, purpose))
        for part in found:
            part.repeatable = True  # As the whole is, which was compared.
            part.objective = self.objective
        return found


def evaluated(model: nn.Module, calibration: Calibration) -> Evaluation:
    """How a network does on some images; its loss is NaN where they have no labels."""
    if calibration.unlabelled:
        images = sum(batch_size(inputs) for inputs, _ in calibration)
        return Evaluation(math.nan, None, images)
    return evaluate(model, calibration, calibration.loss)
