"""What goes from one group, and who says so, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selector.data.loss import LossChange
from selector.learning.explanation import Explanation
from selector.typing import Interval


@dataclass(frozen=True)
class Choice:
    """What goes from one group, and who says so."""

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

    @classmethod
    def of_dict(cls, row: Mapping[str, Any]) -> "Choice":
        """Undo `asdict`, after a way through JSON.

        Raises:
            KeyError: A part is missing.
            TypeError: A part is of another kind.
        """
        measured, interval = row["measured"], row.get("predicted_interval")
        why, against = row.get("explanation"), row.get("against_trusted")
        return cls(
            **{
                **row,
                "remove": tuple(row["remove"]),
                "measured": None if measured is None else LossChange(**measured),
                "predicted_interval": None if interval is None else tuple(interval),
                "explanation": None if why is None else Explanation.of_dict(why),
                "against_trusted": None if against is None else LossChange(**against),
            }
        )
