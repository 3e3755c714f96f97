"""Class labels of any integer type and shape, and the logits that they belong to."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from selector.errors import SelectorError


def logits_of(outputs: object) -> Tensor | None:
    """The logits among a network's outputs: the outputs themselves, or what they call so.

    Networks of Hugging Face return an object with `logits`. None where there are none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = getattr(outputs, "logits", None)
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    return found if isinstance(found, Tensor) else None


def checked_logits(outputs: object, targets: object) -> tuple[Tensor, Tensor]:
    """Logits and labels as `torch.nn.functional.cross_entropy` takes them.

    Whole numbers of any width become int64, and a column (images, 1) becomes (images,).

    Raises:
        SelectorError: No labels, labels of another shape or kind, or outside the classes.
    """
    if targets is None:
        raise SelectorError(
            "the batches hold no targets (None), and cross-entropy needs labels; pass batches of "
            "(inputs, labels), loss=your_loss(outputs, targets), or ask for metrics that need no "
            "gradient"
        )
    logits = logits_of(outputs)
    if logits is None or not isinstance(targets, Tensor) or logits.ndim < 2:
        raise SelectorError(
            "the default loss is cross-entropy of logits (images, classes), or of outputs.logits, "
            "and a tensor of labels; for anything else pass loss=your_loss(outputs, targets)"
        )
    if targets.is_floating_point() or targets.is_complex():
        return logits, _shares(logits, targets)
    labels = _column(logits, targets)
    wanted = (logits.shape[0], *logits.shape[2:])
    if labels.shape != wanted:
        one_hot = labels.shape == logits.shape
        raise SelectorError(
            f"labels have shape {tuple(targets.shape)}, and cross-entropy of logits of shape "
            f"{tuple(logits.shape)} needs whole numbers of shape {wanted}; "
            + ("for one-hot labels pass labels.argmax(1)" if one_hot else "check the batches")
        )
    if labels.numel():
        classes = logits.shape[1]
        # As int64, for PyTorch has no least and greatest of unsigned 16, 32 and 64 bits.
        low, high = int(labels.long().min()), int(labels.long().max())
        wrong = high if high >= classes else low
        # cross_entropy's -100, "ignore this one", is refused too: means over images would differ.
        if not 0 <= wrong < classes:
            raise SelectorError(
                f"label {wrong} is outside the network's {classes} classes (0 to {classes - 1}); "
                "check the labels, and that these weights belong to this data set"
            )
    return logits, labels.long()


def _shares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Probabilities of the classes."""
    if targets.shape == outputs.shape and not targets.is_complex():
        return targets
    raise SelectorError(
        f"labels are {str(targets.dtype).removeprefix('torch.')} of shape {tuple(targets.shape)}; "
        f"cross-entropy needs whole numbers (labels.long()), or probabilities of the logits' shape "
        f"{tuple(outputs.shape)}"
    )


def _column(outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.ndim == outputs.ndim and targets.shape[1] == 1 and outputs.shape[1] != 1:
        return targets.squeeze(1)
    return targets


def classified(outputs: object, targets: object) -> tuple[Tensor, Tensor] | None:
    """A classifier's logits (images, classes) and labels, int64; None without any classes."""
    logits = logits_of(outputs)
    if logits is None or not isinstance(targets, Tensor):
        return None
    if logits.ndim != 2 or logits.shape[1] < 2 or targets.is_floating_point():
        return None
    labels = _column(logits, targets)
    if labels.shape != logits.shape[:1] or labels.dtype == torch.bool or labels.is_complex():
        return None
    return logits, labels.long()


class Tally:
    """Counts of labels and of right answers over batches, where outputs are classes."""

    def __init__(self) -> None:
        self._right = 0
        self._labels: Counter[int] = Counter()
        self.classes: int | None = None
        """Classes that the network tells apart; None where outputs or targets are no classes."""

    def add(self, outputs: object, targets: object) -> None:
        """Count a batch; labels outside the classes, which a loss may ignore, are left out."""
        found = classified(outputs, targets)
        if found is None:
            return
        logits, labels = found
        self.classes = logits.shape[1]
        known = (labels >= 0) & (labels < self.classes)
        self._right += int(((logits.argmax(1) == labels) & known).sum())
        self._labels.update(labels[known].tolist())

    @property
    def accuracy(self) -> float | None:
        """Share of the labels that had the highest logit; None where there are none."""
        total = self._labels.total()
        return self._right / total if total else None

    @property
    def labels(self) -> int | None:
        """Number of different labels; None where there are none."""
        return len(self._labels) or None

    @property
    def guessing(self) -> float | None:
        """Accuracy of who always gives the most frequent label, or one of all classes by chance."""
        total = self._labels.total()
        if not total or self.classes is None:
            return None
        return max(1 / self.classes, self._labels.most_common(1)[0][1] / total)
