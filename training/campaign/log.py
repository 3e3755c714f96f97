"""The outcome of every network of a campaign: as a value, in a log, in a summary."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from selector.errors import SelectorError
from selector.tables import text_table

LOG = "campaign.jsonl"
"""In the folder of weights: one line for each network that was tried, the latest last."""

Status = Literal["there", "recorded", "below", "failed", "stopped", "elsewhere"]
MEANINGS: dict[Status, str] = {
    "there": "were there",
    "recorded": "recorded now",
    "below": "trained, but not recorded, being below their bar",
    "failed": "failed",
    "stopped": "not done, the time being up",
    "elsewhere": "left to another worker",
}

ALL_DONE, SOME_FAILED, TIME_UP = 0, 1, 3
"""Exit status of a campaign; 2 is bad input."""


@dataclass(frozen=True)
class NetworkOutcome:
    """What became of one network."""

    network: str
    status: Status
    reason: str
    """Why not, or what was done."""
    worker: str = ""
    """Host and process that was at it."""
    seconds: float = 0.0

    @property
    def done(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.status in ("there", "recorded", "below")


def write_line(weights: Path, outcome: NetworkOutcome) -> None:
    """Add an outcome to the log.

    Raises:
        SelectorError: The log cannot be written.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with (weights / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now, **asdict(outcome)}) + "\n")
    except OSError as error:
        raise SelectorError(f"{weights / LOG} cannot be written: {error}") from error


def summary(outcomes: Sequence[NetworkOutcome], weights: Path) -> str:
    """Counts, and the networks that were skipped with their reasons."""
    counts = Counter(outcome.status for outcome in outcomes)
    parts = [f"{counts[status]} {text}" for status, text in MEANINGS.items() if counts[status]]
    lines = [f"{len(outcomes)} networks: {', '.join(parts) or 'none'}"]
    failed = [[o.network, o.reason] for o in outcomes if o.status == "failed"]
    if failed:
        lines += [text_table(["skipped", "why"], failed), f"log: {weights / LOG}"]
    if not all(outcome.done for outcome in outcomes):
        lines.append("the same command goes on where this one ended")
    return "\n".join(lines)


def exit_status(outcomes: Sequence[NetworkOutcome]) -> int:
    """0 if all networks are recorded, 1 if one failed, 3 if some are not done yet."""
    found = {outcome.status for outcome in outcomes}
    if "failed" in found:
        return SOME_FAILED
    return TIME_UP if found & {"stopped", "elsewhere"} else ALL_DONE
