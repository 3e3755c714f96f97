"""Loss and accuracy that pruning is expected to leave, before the first cut."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.data.batches import Batches
from selector.data.forward import evaluating, read, run_batch
from selector.data.labels import classified
from selector.learning.composing import Composing
from selector.typing import Interval

DRAWS = 8
"""Draws of the noise for each image."""
NOISE = 0.7
"""Standard deviation of the noise when nothing of the logits is left, in that of the logits; chosen
on 32 prunings of `cy_resnet20` and `he_resnet20`, whose accuracies it tells to a few points on
average."""
MOST_LOGITS = 2048 * 100 * DRAWS
"""Logits, of images, classes and draws, that are disturbed at most: a second of one core."""
KEPT = tuple(np.linspace(1, 0, 81).tolist())
"""Parts of the logits that are left, at which loss and accuracy are computed."""


@dataclass(frozen=True)
class Expected:
    """Loss and accuracy that pruning is expected to leave, on the calibration images."""

    loss: float
    """Of the network as it is, in nats."""
    loss_change_nats: float
    """Sum of the predicted changes of all cuts, times the learnt factor of whole prunings if there
    is one; fine-tuning is left out."""
    loss_change_interval: Interval
    """90 % interval: that of whole prunings; where none was learnt, the sums of all lower and of
    all upper ends, since a network is fragile in all its groups or in none."""
    accuracy: float | None = None
    """Of the network as it is; None where outputs are no classes or the loss is no cross-entropy.
    """
    accuracy_after: float | None = None
    accuracy_interval: Interval | None = None
    rounds: int = 1
    """Cuts that the sums run over."""

    def __str__(self) -> str:
        """One line."""
        low, high = self.loss_change_interval
        text = (
            f"expected: loss {self.loss:.3f} -> {self.loss + self.loss_change_nats:.3f} nats "
            f"({low:+.3f} to {high:+.3f})"
        )
        if self.accuracy is None or self.accuracy_after is None or self.accuracy_interval is None:
            return text
        worst, best = self.accuracy_interval
        return text + (
            f", accuracy {self.accuracy:.1%} -> {self.accuracy_after:.1%} "
            f"({worst:.1%} to {best:.1%})"
        )

    @property
    def drop(self) -> tuple[float, float, float] | None:
        """Accuracy that is expected to go, and the least and the most of it; None where unknown."""
        if self.accuracy is None or self.accuracy_after is None or self.accuracy_interval is None:
            return None
        worst, best = self.accuracy_interval
        return self.accuracy - self.accuracy_after, self.accuracy - best, self.accuracy - worst

    @property
    def alarming(self) -> bool:
        """Whether a tenth of the accuracy is expected to go, or the loss to double and more."""
        if self.accuracy is not None and self.accuracy_after is not None:
            return self.accuracy_after < 0.9 * self.accuracy
        return self.loss_change_nats > max(abs(self.loss), 0.05)


@dataclass(frozen=True, eq=False)
class Logits:
    """What a classifier says of some images, and what is true."""

    values: Tensor
    """Shape (images, classes), float64, on the CPU."""
    labels: Tensor

    def after(self, loss_changes: Sequence[float]) -> list[float]:
        r"""Accuracy after each of some rises of the mean loss.

        Pruning is taken to put noise in the place of a part of every logit: :math:`\kappa z +
        \sqrt{1 - \kappa^2}\, 0.7\, s\, \epsilon` with the logits' standard deviation :math:`s` and
        normal :math:`\epsilon`, and :math:`\kappa` so small that the mean cross-entropy rises by
        so much; the images that are still right are counted. Where the loss is to fall, accuracy
        is taken to stay.

        Noise is drawn eight times for each image. Where that is more than `MOST_LOGITS` numbers, it
        is drawn less often; where one draw is too much, for some of the images, drawn at random:
        the share of these that stays right is taken for that of all.

        Args:
            loss_changes: In nats.

        Returns:
            Shares of images, falling as the loss rises, never below what noise alone leaves.
        """
        losses, shares = np.array([*self._disturbed(max(loss_changes))]).T
        rises = np.maximum.accumulate(losses - losses[0])
        shares = np.minimum.accumulate(shares)
        shares *= self.accuracy / shares[0] if shares[0] else 1.0
        found = np.interp(loss_changes, rises, shares)
        # Not beyond what the first point says, where the loss falls or does not change.
        accuracies: list[float] = np.where(
            np.less_equal(loss_changes, 0), shares[0], found
        ).tolist()
        return accuracies

    def _disturbed(self, highest: float) -> Iterator[tuple[float, float]]:
        """Mean loss and share of images right for every part of `KEPT`, until the rise is higher.

        Args:
            highest: Rise of the loss, in nats, beyond which nothing is asked.
        """
        generator = torch.Generator().manual_seed(0)
        images, classes = self.values.shape
        draws = min(DRAWS, max(1, MOST_LOGITS // (images * classes)))
        values, labels = self.values, self.labels
        if images * classes > MOST_LOGITS:
            some = torch.randperm(images, generator=generator)[: max(1, MOST_LOGITS // classes)]
            values, labels = values[some], labels[some]
        noise = torch.randn((draws, *values.shape), generator=generator, dtype=torch.float64)
        noise *= NOISE * self.values.std()
        first, disturbed = float("nan"), torch.empty_like(values)
        for kept in KEPT:
            losses, right = [], 0
            for drawn in noise:
                torch.mul(values, kept, out=disturbed)
                disturbed.add_(drawn, alpha=(1 - kept**2) ** 0.5)
                losses.append(float(functional.cross_entropy(disturbed, labels)))
                right += int((disturbed.argmax(1) == labels).sum())
            loss = sum(losses) / draws
            yield loss, right / (draws * len(labels))
            first = loss if kept == KEPT[0] else first
            if loss - first > highest:
                return

    @property
    def accuracy(self) -> float:
        """Share of images whose highest logit is the label."""
        return float((self.values.argmax(1) == self.labels).double().mean())


def classes_said(model: nn.Module, batches: Batches) -> Logits | None:
    """What a classifier says of the batches; None where outputs or targets are no classes."""
    values, labels = [], []
    with torch.no_grad(), evaluating(model):
        for number, (inputs, targets) in enumerate(read(model, batches)):
            found = classified(run_batch(model, inputs, number), targets)
            if found is None:
                return None
            values.append(found[0].double().cpu())
            labels.append(found[1].cpu())
    return Logits(torch.cat(values), torch.cat(labels))


def expect(
    changes: Iterable[float],
    intervals: Iterable[Interval],
    base_loss: float,
    logits: Logits | None,
    rounds: int = 1,
    composing: Composing | None = None,
) -> Expected:
    """Sum up the predictions of all cuts, and say what accuracy such a loss leaves.

    Args:
        changes: Predicted loss change of every cut of every group, in nats.
        intervals: Their 90 % intervals.
        base_loss: Loss of the network as it is.
        logits: What it says of the calibration images; None where those are no classes.
        rounds: Cuts that the sums run over.
        composing: What whole prunings lose of such sums, where that was learnt: then the interval
            is that of whole prunings, and not made of the groups' own.
    """
    total = sum(changes)
    ends = list(intervals)
    low, high = sum(end for end, _ in ends), sum(end for _, end in ends)
    if composing is not None:
        low, total, high = composing.of(total)
    if logits is None:
        return Expected(base_loss, total, (low, high), rounds=rounds)
    after, best, worst = logits.after([total, low, high])
    return Expected(
        base_loss, total, (low, high), logits.accuracy, after, (worst, best), rounds=rounds
    )
