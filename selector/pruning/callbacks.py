"""What is called after every round of a pruning: a protocol, and logs for CSV and TensorBoard."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn

from selector.data.loss import Evaluation
from selector.errors import SelectorError
from selector.planning.plan import Plan


@dataclass(frozen=True)
class RoundEnd:
    """What a round has come to, once it is kept."""

    number: int
    """Counts from 1."""
    plan: Plan
    """Of this round, with its outcome."""
    model: nn.Module
    """The network as it is now; look, but change nothing."""
    macs_kept: float
    """Share of the unpruned network's multiply-accumulates that is left."""
    parameters_kept: float
    evaluation: Evaluation | None
    """Loss and accuracy on the calibration images; None where they have no labels."""

    @property
    def numbers(self) -> dict[str, float]:
        """What can be drawn as a curve, by name; what is not known is left out."""
        outcome, evaluation = self.plan.outcome, self.evaluation
        predicted = [choice.predicted_nats for choice in self.plan.choices]
        found: dict[str, float | None] = {
            "macs_kept": self.macs_kept,
            "parameters_kept": self.parameters_kept,
            "loss": None if evaluation is None else evaluation.loss,
            "accuracy": None if evaluation is None else evaluation.accuracy,
            "measured_nats": None if outcome is None else outcome.rise,
            "halved": None if outcome is None else float(outcome.halved),
        }
        if None not in predicted:
            found["predicted_nats"] = sum(nats for nats in predicted if nats is not None)
        return {name: value for name, value in found.items() if value is not None}


@runtime_checkable
class Callback(Protocol):
    """What `prune(callbacks=[...])` takes: anything with this method."""

    def on_round_end(self, end: RoundEnd) -> None:
        """Be told that a round is kept. An exception stops the pruning; the round stays."""


COLUMNS = (
    "round",
    "macs_kept",
    "parameters_kept",
    "loss",
    "accuracy",
    "predicted_nats",
    "measured_nats",
    "halved",
)


class CsvLog:
    """A CSV file with a line for every round, written as it goes.

    Args:
        path: The file; a run that is resumed goes on in it, any other begins it again.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_round_end(self, end: RoundEnd) -> None:
        """Add a line.

        Raises:
            SelectorError: The file cannot be written.
        """
        fresh = end.number == 1 or not self.path.exists()
        try:
            with self.path.open("w" if fresh else "a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if fresh:
                    writer.writeheader()
                writer.writerow({"round": end.number, **end.numbers})
        except OSError as error:
            raise SelectorError(f"{self.path} cannot be written: {error}") from error


class TensorBoardLog:
    """Curves over the rounds for TensorBoard.

    Args:
        folder: Of the run, as TensorBoard takes it.

    Raises:
        SelectorError: The package tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SelectorError(
                "TensorBoardLog needs tensorboard: pip install tensorboard"
            ) from error
        self._writer = SummaryWriter(str(folder))

    def on_round_end(self, end: RoundEnd) -> None:
        """Add a point to every curve."""
        for name, value in end.numbers.items():
            self._writer.add_scalar(f"pruning/{name}", value, end.number)
        self._writer.flush()


def checked_callbacks(callbacks: object) -> tuple[Callback, ...]:
    """Callbacks in a list, as a tuple.

    Raises:
        SelectorError: No list, or something without `on_round_end`.
    """
    found = tuple(callbacks) if isinstance(callbacks, Iterable) else (callbacks,)
    for one in found:
        if isinstance(one, type) or not isinstance(one, Callback):
            raise SelectorError(
                "callbacks must be a list of objects with a method on_round_end(end), such as "
                f"[selector.CsvLog('rounds.csv')], not {one!r:.60}"
            )
    return found
