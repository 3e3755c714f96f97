"""A plan as a value: what goes from every group, by whose advice; it prints, saves and loads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path

from selector.errors import SelectorError
from selector.explanation import Explanation
from selector.files import write_text
from selector.rivals import LossChange
from selector.tables import count_text, nats_text, text_table
from selector.tracing import Groups


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
    """Loss change measured by the oracle, given what the plan already takes from other groups."""
    explanation: Explanation | None = None
    """Why the selector trusted a metric; in a plan of several rounds, in the last round that
    removed channels by the metric named. None where no selector was asked."""


@dataclass(frozen=True)
class Plan:
    """Channels to remove from a network, with the reasons."""

    criterion: str
    choices: tuple[Choice, ...]
    macs_before: float
    macs_after: float
    parameters_before: float
    parameters_after: float
    refused: Mapping[str, str]
    """Groups that are left alone, with the reason."""
    oracle_images: int
    """Images evaluated by the oracle to make the plan."""

    @classmethod
    def of_groups(
        cls, criterion: str, choices: Sequence[Choice], groups: Groups, oracle_images: int
    ) -> "Plan":
        """The plan of these choices, with what they cost and save in a network of these groups."""
        removed = {groups.prunable[choice.group]: len(choice.remove) for choice in choices}
        return cls(
            criterion=criterion,
            choices=tuple(choices),
            macs_before=groups.costs.total("macs"),
            macs_after=groups.costs.total("macs", removed),
            parameters_before=groups.costs.total("parameters"),
            parameters_after=groups.costs.total("parameters", removed),
            refused=dict(groups.refused),
            oracle_images=oracle_images,
        )

    @property
    def removals(self) -> dict[str, tuple[int, ...]]:
        """Group name -> channels that go."""
        return {choice.group: choice.remove for choice in self.choices}

    def explain(self, group: str) -> Explanation:
        """Why the selector trusted the metric that it did in a group.

        Raises:
            SelectorError: The plan takes nothing from the group, or no selector made the choice.
        """
        found = {choice.group: choice for choice in self.choices}
        if group in self.refused:
            raise SelectorError(f"group {group!r} is left alone: {self.refused[group]}")
        if group not in found:
            nearest = get_close_matches(group, found, n=3, cutoff=0.0)
            raise SelectorError(
                f"the plan takes nothing from a group {group!r}; nearest: {', '.join(nearest)}"
            )
        choice = found[group]
        if choice.explanation is None:
            raise SelectorError(_unexplained(self.criterion))
        if choice.measured is None:
            return choice.explanation
        return choice.explanation.with_measured(choice.metric, choice.measured)

    def __str__(self) -> str:
        """The plan as a table."""
        rows = [
            [
                choice.group,
                f"{choice.channels}",
                f"{choice.channels - len(choice.remove)}",
                choice.metric + (" (single best)" if choice.fell_back else ""),
                choice.runner_up or "-",
                nats_text(choice.predicted_nats),
                nats_text(choice.measured.nats if choice.measured else None),
            ]
            for choice in self.choices
        ]
        columns = ["group", "channels", "left", "metric trusted", "runner-up"]
        table = text_table([*columns, "predicted nats", "measured nats"], rows)
        lines = [
            table,
            f"MACs {count_text(self.macs_before)} -> {count_text(self.macs_after)} "
            f"({self.macs_after / self.macs_before:.1%}), parameters "
            f"{count_text(self.parameters_before)} -> {count_text(self.parameters_after)} "
            f"({self.parameters_after / self.parameters_before:.1%}); "
            f"oracle images {self.oracle_images}",
            *(f"left alone: {name}: {why}" for name, why in self.refused.items()),
        ]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read `to_json` back.

        Raises:
            SelectorError: Not a plan.
        """
        try:
            fields = json.loads(text)
            fields["choices"] = tuple(_choice(row) for row in fields["choices"])
            return cls(**fields)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise SelectorError(f"this is not a plan saved by to_json: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON.

        Raises:
            SelectorError: The file cannot be written.
        """
        write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan written by `save`.

        Raises:
            SelectorError: No such file, or not a plan.
        """
        try:
            return cls.from_json(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise SelectorError(f"the plan {path} cannot be read: {error}") from error


def _unexplained(criterion: str) -> str:
    if criterion.startswith("selector"):
        return "the plan was made without explanations; make it again with this version"
    if criterion.startswith("oracle"):
        return (
            f"criterion {criterion!r} measures every metric's choice and takes the best, which "
            "needs no explanation; use criterion='selector' for a prediction that has one"
        )
    return (
        f"criterion {criterion!r} is one metric for every group, so there is nothing to explain; "
        "use criterion='selector'"
    )


def _choice(row: dict[str, object]) -> Choice:
    measured = row["measured"]
    change = LossChange(**measured) if isinstance(measured, dict) else None
    removed = row["remove"]
    assert isinstance(removed, list)
    why = row.get("explanation")
    found = Explanation.of_dict(why) if isinstance(why, dict) else None
    whole = {**row, "remove": tuple(removed), "measured": change, "explanation": found}
    return Choice(**whole)  # type: ignore[arg-type]
