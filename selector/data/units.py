"""Whether a loss is a mean over single images, found out on the batches themselves."""

import logging
from dataclasses import dataclass
from typing import Literal
from weakref import WeakSet

import torch
from torch import Tensor

from selector.errors import SelectorError

LOG = logging.getLogger("selector")

Unit = Literal["image", "batch"]
"""What a loss is measured by."""

BY_BATCH = (
    "the loss is not a mean over single images (class weights, ignored targets, or images that "
    "depend on each other), so it is measured batch by batch, and standard errors are those "
    "between batches"
)

_said: WeakSet[object] = WeakSet()
"""Losses of which that has been logged."""


@dataclass(eq=False)
class Observed:
    """What the batches so far have shown of a loss."""

    unit: Unit = "image"
    """Images until a batch shows otherwise; then batches for good."""
    settled: bool = False
    """Whether a batch of two images or more has been compared."""

    def compare(self, singles: Tensor | None, whole: Tensor, loss: object) -> None:
        """Compare the losses of single images with that of their batch.

        Args:
            singles: Loss of every image alone, shape (images,), float64; None where it has none.
            whole: The batch's own value, a scalar of the loss's own type.
            loss: The loss, to log once that it is measured batch by batch.

        Raises:
            SelectorError: The loss is a sum over the images.
        """
        if self.unit == "batch" or not bool(torch.isfinite(whole)):
            return  # A loss that is not finite is reported by those who asked for it.
        if singles is None or not bool(torch.isfinite(singles).all()):
            self._by_batch(loss)
            return
        value, mean, total = float(whole), float(singles.mean()), float(singles.sum())
        scale = max(float(singles.abs().mean()), abs(value))
        if len(singles) < 2 or not scale:
            return  # A sum and a mean look alike.
        tolerance = 1e-2 if whole.element_size() < 4 else 1e-4
        if abs(mean - value) > tolerance * scale:
            if not self.settled and abs(total - value) <= tolerance * abs(value):
                raise SelectorError(
                    f"the loss is a sum over the images of a batch ({value:.4g} for "
                    f"{len(singles)} images), so it grows with the batch; return a mean "
                    "(reduction='mean')"
                )
            self._by_batch(loss)
        self.settled = True

    def _by_batch(self, loss: object) -> None:
        self.unit, self.settled = "batch", True
        try:
            again = loss in _said
            _said.add(loss)
        except TypeError:  # No weak reference to it.
            again = False
        LOG.log(logging.DEBUG if again else logging.WARNING, "%s", BY_BATCH)
