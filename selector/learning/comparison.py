"""The result of a comparison: it prints as a table and says which selector to use."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from selector.learning.evaluation import VBS, Judged
from selector.tables import text_table

SHIPPED = "selector as given"
ALONE = "retrained on your other networks"
TOGETHER = "retrained on these and the others"
ERRORS = 2.0
"""Standard errors that a difference must exceed to count."""
LEAST_FAIR = 3
"""Networks without which the error of a mean difference says nothing."""


@dataclass(frozen=True)
class MethodRow:
    """One way to choose, over all of a user's decisions."""

    method: str
    oracle_calls: float
    regret: float
    """Mean normalised regret."""
    nats: float
    """Mean loss change."""
    gap_closed: float | None
    """(SBS - method) / (SBS - VBS) on normalised regret; None where SBS and VBS are equal."""
    gap_closed_nats: float | None
    regret_by_network: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Comparison:
    """Methods compared on a user's networks, and whether retraining helped."""

    rows: tuple[MethodRow, ...]
    networks: tuple[str, ...]
    decisions: int
    known: tuple[str, ...]
    """Networks that the given selector has learnt from: no fair test of it."""
    best_retrained: str | None
    """The retrained selector with the lower regret; None where none could be evaluated."""
    difference: float | None
    """Regret of the given selector minus the retrained one's, mean over the fair networks."""
    difference_error: float | None
    """Its standard error over networks."""
    helped: bool | None
    """Whether retraining helped; None where the networks do not say."""
    notes: tuple[str, ...]

    @classmethod
    def of(cls, judged: Judged, known: Sequence[str], notes: Sequence[str]) -> "Comparison":
        """From all methods' outcomes.

        Args:
            judged: Of the methods named here, in any order.
            known: Networks that the given selector has learnt from.
            notes: Lines that are printed before the advice.
        """
        rows = tuple(_row(judged, name) for name in judged.outcomes)
        regrets = {row.method: dict(row.regret_by_network) for row in rows}
        retrained = [name for name in (ALONE, TOGETHER) if name in regrets]
        best = min(retrained, key=lambda n: np.mean([*regrets[n].values()]), default=None)
        fair = [name for name in regrets[VBS] if name not in known]
        difference = error = None
        if best is not None and len(fair) >= LEAST_FAIR:
            gains = np.array([regrets[SHIPPED][name] - regrets[best][name] for name in fair])
            difference = float(gains.mean())
            error = float(gains.std(ddof=1) / len(gains) ** 0.5)
        helped = None
        if difference is not None and error is not None and abs(difference) > ERRORS * error:
            helped = difference > 0
        return cls(
            rows,
            tuple(regrets[VBS]),
            len(judged.network),
            tuple(known),
            best,
            difference,
            error,
            helped,
            tuple(notes),
        )

    @property
    def advice(self) -> str:
        """Whether retraining helped, and which selector to use, in words."""
        fair = len(self.networks) - len(self.known)
        if self.best_retrained is None:
            return "no retrained selector could be evaluated; record more networks"
        if self.difference is None:
            return (
                f"{fair} networks that the given selector has not learnt from are too few to say "
                f"whether retraining helps (at least {LEAST_FAIR}); record more networks"
            )
        found = (
            f"regret {abs(self.difference):.3f} ± {self.difference_error:.3f} "
            f"{'lower' if self.difference > 0 else 'higher'} on {fair} networks"
        )
        if self.helped is None:
            return (
                f"retraining made no difference beyond twice its error ({self.best_retrained}: "
                f"{found}); keep the given selector, or record more networks"
            )
        if self.helped:
            return f"retraining helped: use the selector {self.best_retrained} ({found})"
        return f"retraining did not help: keep the given selector ({self.best_retrained}: {found})"

    def __str__(self) -> str:
        """The table, the warnings, and the advice."""
        cells = [
            [
                row.method + (" *" if row.method == SHIPPED and self.known else ""),
                f"{row.oracle_calls:.0f}",
                f"{row.regret:.3f}",
                f"{row.nats:.4f}",
                _share(row.gap_closed),
                _share(row.gap_closed_nats),
            ]
            for row in self.rows
        ]
        columns = ["method", "oracle calls", "normalised regret", "loss change, nats"]
        lines = [
            f"{self.decisions} decisions on {len(self.networks)} networks, each left out of what "
            "is learnt",
            text_table([*columns, "gap closed", "gap closed, nats"], cells),
        ]
        if self.known:
            lines.append(
                "* no fair test: the given selector has learnt from "
                f"{', '.join(self.known)}; the advice is based on the other networks"
            )
        return "\n".join([*lines, *self.notes, self.advice])

    def to_json(self) -> str:
        """The comparison as JSON text, with the advice."""
        return json.dumps({**asdict(self), "advice": self.advice}, indent=1)


def _row(judged: Judged, method: str) -> MethodRow:
    gaps = [judged.gap_closed(method, measure) for measure in ("regret", "nats")]
    known = [None if np.isnan(gap) else gap for gap in gaps]
    return MethodRow(
        method,
        judged.outcomes[method].oracle_calls,
        judged.mean(method, "regret"),
        judged.mean(method, "nats"),
        known[0],
        known[1],
        tuple(judged.by_network(method).items()),
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
