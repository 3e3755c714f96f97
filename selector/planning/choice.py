"""What goes from one group, and which metric chose it, as a value."""

from dataclasses import dataclass

from selector.data.loss import LossChange
from selector.errors import SelectorError
from selector.learning.explanation import Explanation
from selector.typing import Interval


@dataclass(frozen=True)
class Choice:
    """What goes from one group, and which metric chose it."""

    group: str
    channels: int
    """Removable channels of the group; each is several filters where convolutions are grouped."""
    remove: tuple[int, ...]
    metric: str
    runner_up: str | None
    fell_back: bool
    """Whether the single best metric was kept because no other was credibly better."""
    predicted_nats: float | None
    """Predicted loss change; None where a metric was named by hand."""
    measured: LossChange | None
    """Loss change measured where the oracle alone decides, given what the plan already takes from
    other groups."""
    predicted_interval: Interval | None = None
    """90 % interval of the predicted loss change, in nats."""
    against_trusted: LossChange | None = None
    """Where the group was verified: what the choice does to the loss compared with the one that the
    selector trusted, given all else that the plan takes; 0 where that one was best."""
    asked: float | None = None
    """Channels that were to be left, before rounding to an allowed width; None where no ratio was
    asked of the group."""
    explanation: Explanation | None = None
    """Why the selector trusted a metric; in a plan of several rounds, in the last round that
    removed channels by the metric named. None where no selector was asked."""

    def __post_init__(self) -> None:
        """Refuse channels that the group does not have.

        Raises:
            SelectorError: `remove` repeats a channel, or names one outside the group.
        """
        wrong = [channel for channel in self.remove if not 0 <= channel < self.channels]
        if wrong:
            raise SelectorError(
                f"remove names channel {wrong[0]} of group {self.group!r}, which has "
                f"{self.channels} channels (0 to {self.channels - 1})"
            )
        if len(set(self.remove)) < len(self.remove):
            raise SelectorError(f"remove names a channel of group {self.group!r} twice")
        if self.channels and len(self.remove) == self.channels:
            raise SelectorError(f"remove names all channels of group {self.group!r}; keep one")
