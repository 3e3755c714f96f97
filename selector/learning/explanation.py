"""Why a metric was trusted, as a value: it prints, and it travels as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from selector.data.loss import LossChange
from selector.serialisation import of_json, of_plain
from selector.tables import nats_text

LEAST_PRINTED = 0.0005
"""Reasons of less weight are not printed."""


@dataclass(frozen=True)
class Reason:
    """What features of one kind say about the trusted metric and its rival."""

    kind: str
    weight: float
    """By how much they raise the rival's predicted cost over the trusted metric's; negative where
    they speak for the rival."""
    values: tuple[str, ...]
    """The features of the kind with the most weight, with their values, in words."""


@dataclass(frozen=True)
class Unusual:
    """A number in which the decision differs from the nearest ones that were learnt from."""

    name: str
    value: str
    usual: str
    """Mean over the training decisions."""
    gap: float
    """Distance from the nearest training decisions, in the spread of all of them."""


@dataclass(frozen=True)
class Explanation:
    """Why the selector trusts a metric in one decision."""

    channels: int
    count: int
    """Channels that go."""
    trusted: str
    runner_up: str | None
    """The next-best metric that would remove other channels."""
    single_best: str
    predicted_best: str
    """The metric with the lowest predicted cost, whether it is trusted or not."""
    gain: float
    """Predicted cost of the single best minus that of the predicted best."""
    gain_error: float
    credible: bool
    """Whether the gain exceeds its error by the selector's measure."""
    fell_back: bool
    differs: bool
    """Whether the trusted metric would remove other channels than the single best."""
    expected_regret: float
    """Predicted normalised regret of the trusted metric: over the spread of the decision, above the
    best of all metrics."""
    predicted_nats: float
    predicted_interval: tuple[float, float]
    """90 % interval of the loss change, in nats."""
    novelty: float
    """Distance to the training decisions, over that within which nearly all of them lie."""
    unusual: tuple[Unusual, ...]
    """The numbers in which it differs most from these, the largest first."""
    rival: str | None
    """The metric that the reasons compare with: the single best, or the runner-up where the single
    best would remove the same; None where all metrics would."""
    reasons: tuple[Reason, ...]
    """Largest first; their weights sum to the rival's predicted cost minus the trusted one's."""
    taken: str | None = None
    """The metric whose choice was measured to be best; None where nothing was measured."""
    against_trusted: LossChange | None = None
    """Loss change of that choice against the trusted one's, where the group was verified."""

    def verified(self, taken: str, against_trusted: LossChange) -> "Explanation":
        """The same after verification.

        Args:
            taken: The metric whose choice was measured to be best.
            against_trusted: Loss change of that choice against the trusted one's.
        """
        return replace(self, taken=taken, against_trusted=against_trusted)

    def __str__(self) -> str:
        """The decision in a few lines, then the reasons."""
        lines = [
            f"{self.count} of {self.channels} channels go; trusted: {self.trusted}; "
            f"runner-up: {self.runner_up or 'none, all metrics would remove the same'}",
            *self._verified_line(),
            self._gain_line(),
            f"expected regret {self.expected_regret:.2f} of the spread between metrics",
            "predicted loss change {} nats, 90 % interval: {} to {}".format(
                *map(nats_text, (self.predicted_nats, *self.predicted_interval))
            ),
            self._distance_line(),
        ]
        if self.rival is not None:
            lines.append(f"reasons for {self.trusted} over {self.rival}:")
            lines += [
                f"  {reason.weight:+.3f}  {reason.kind}"
                + (f": {'; '.join(reason.values)}" if reason.values else "")
                for reason in self.reasons
                if abs(reason.weight) >= LEAST_PRINTED
            ]
        return "\n".join(lines)

    def _verified_line(self) -> list[str]:
        if self.against_trusted is None:
            return []
        if self.taken == self.trusted:
            return ["verified: no other candidate that was tried left a lower loss"]
        change = self.against_trusted
        found = f"{nats_text(change.nats)} ± {change.standard_error:.4f} nats"
        return [f"verified: the choice of {self.taken} was taken instead ({found})"]

    def _gain_line(self) -> str:
        gain = f"{self.gain:.3f} ± {self.gain_error:.3f}"
        if self.fell_back:
            doubt = (
                "the decision lies outside the training distribution"
                if self.credible
                else f"the gain, {gain}, is not credible"
            )
            return f"fell back to the single best: {self.predicted_best} looked better, but {doubt}"
        if self.trusted == self.single_best:
            return f"{self.trusted} is the single best, and no metric looked better"
        if not self.differs:
            return f"{self.single_best}, the single best, would remove the same channels"
        return f"predicted gain over the single best, {self.single_best}: {gain}"

    def _distance_line(self) -> str:
        inside = "within" if self.novelty <= 1 else "OUTSIDE"
        furthest = "; ".join(f"{u.name} {u.value} (usually {u.usual})" for u in self.unusual)
        return (
            f"{inside} the training distribution ({self.novelty:.2f} of the distance that counts "
            f"as outside); most unusual: {furthest}"
        )

    def to_json(self) -> str:
        """The explanation as JSON text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def of_dict(cls, row: Mapping[str, Any]) -> "Explanation":
        """Undo `asdict`, after a way through JSON.

        Raises:
            SelectorError: A field is missing, unknown or of another type; it is named.
        """
        return of_plain(row, cls, "an explanation saved by to_json")

    @classmethod
    def from_json(cls, text: str) -> "Explanation":
        """Read `to_json` back.

        Raises:
            SelectorError: As `of_dict`.
        """
        return of_json(text, cls, "an explanation saved by to_json")
