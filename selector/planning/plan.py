"""A plan as a value: what goes from every group and why; it prints, saves and loads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from selector.data.loss import LossChange
from selector.errors import SelectorError
from selector.files import read_text, write_text
from selector.learning.explanation import Explanation
from selector.network.surgery import Cut, cuts_of
from selector.network.tracing import Groups
from selector.planning.choice import Choice
from selector.planning.expectation import Expected
from selector.planning.plan_checks import check_cuts, check_numbers, unexplained
from selector.serialisation import of_json
from selector.tables import count_text, data_frame, html_table, nats_text, text_table

if TYPE_CHECKING:
    from pandas import DataFrame

WHAT = "a plan saved by to_json"
COLUMNS = (
    "group",
    "channels",
    "asked",
    "left",
    "metric trusted",
    "runner-up",
    "predicted nats",
    "measured nats",
)


@dataclass(frozen=True)
class Goal:
    """What was asked of the whole network, and what a plan gives."""

    target: str
    """`keep_macs`, `keep_params`, `keep_weights`, `keep_latency`, `ratio` or `ratios`."""
    asked: float
    got: float


@dataclass(frozen=True)
class RoundOutcome:
    """What came of a plan that was carried out as one round."""

    share: float
    """The part of the way to the target that is done after it."""
    rise: float | None
    """By how much the loss on the calibration images was higher after cut and recalibration than
    before the round; None where they have no targets."""
    halved: int
    """How often the round's step was halved because the loss rose above the predicted interval, or
    the network's limit."""
    loss: float | None
    """Loss after cut, recalibration and fine-tuning, on the calibration images."""
    accuracy: float | None = None
    """The same images' accuracy; None where it has no meaning, and in plans of earlier versions."""


def renumbered(groups: Groups, choices: Sequence[Choice]) -> tuple[str, ...]:
    """Those of the choices' groups whose channels are no offsets of their root's outputs."""
    return tuple(one.group for one in choices if not groups.prunable[one.group].by_offset)


@dataclass(frozen=True, repr=False)
class Plan:
    """Channels to remove from a network, with the reasons."""

    criterion: str
    choices: tuple[Choice, ...]
    macs_before: float
    macs_after: float
    parameters_before: float
    parameters_after: float
    refused: Mapping[str, str]
    """Groups that are not pruned, with the reason."""
    oracle_images: int
    """Images evaluated by the oracle to make the plan."""
    goal: Goal | None = None
    expected: Expected | None = None
    """Loss and accuracy that are expected when the plan is carried out; None where a metric was
    named by hand."""
    measured: LossChange | None = None
    """What the whole plan does to the loss, where it was verified by `choose`."""
    warnings: tuple[str, ...] = ()
    """Where what was asked is not what will be done."""
    outcome: RoundOutcome | None = None
    cuts: tuple[Cut, ...] = ()
    """What goes from every layer; empty in plans saved by earlier versions."""
    renumbered: tuple[str, ...] = ()
    """Groups whose channels are no offsets of their root's outputs: heads, or outputs that stay."""

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
            cuts=cuts_of((groups.prunable[one.group], one.remove) for one in choices),
            renumbered=renumbered(groups, choices),
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
            raise SelectorError(f"group {group!r} is not pruned: {self.refused[group]}")
        if group not in found:
            nearest = get_close_matches(group, found, n=3, cutoff=0.0)
            raise SelectorError(
                f"the plan takes nothing from a group {group!r}; nearest: {', '.join(nearest)}"
            )
        choice = found[group]
        if choice.explanation is None:
            raise SelectorError(unexplained(self.criterion))
        if choice.against_trusted is None:
            return choice.explanation
        return choice.explanation.verified(choice.metric, choice.against_trusted)

    def __repr__(self) -> str:
        """What it saves, on one line."""
        return (
            f"Plan({self.criterion}: {len(self.choices)} groups, MACs "
            f"{count_text(self.macs_before)} -> {count_text(self.macs_after)}, parameters "
            f"{count_text(self.parameters_before)} -> {count_text(self.parameters_after)})"
        )

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return html_table(
            COLUMNS, [self._cells(choice) for choice in self.choices], title=repr(self)
        )

    def to_pandas(self) -> "DataFrame":
        """The choices as a pandas table, a row for each group."""
        rows = []
        for one in self.choices:
            measured = one.measured
            rows.append(
                {
                    "group": one.group,
                    "channels": one.channels,
                    "removed": len(one.remove),
                    "metric": one.metric,
                    "runner_up": one.runner_up,
                    "fell_back": one.fell_back,
                    "predicted_nats": one.predicted_nats,
                    "measured_nats": None if measured is None else measured.nats,
                }
            )
        return data_frame(rows)

    def __str__(self) -> str:
        """The plan as a table."""
        lines = [
            text_table(COLUMNS, [self._cells(choice) for choice in self.choices]),
            f"MACs {count_text(self.macs_before)} -> {count_text(self.macs_after)} "
            f"({self.macs_after / self.macs_before:.1%}), parameters "
            f"{count_text(self.parameters_before)} -> {count_text(self.parameters_after)} "
            f"({self.parameters_after / self.parameters_before:.1%}); "
            f"oracle images {self.oracle_images}",
            *([goal_text(self.goal)] if self.goal else []),
            *([str(self.expected)] if self.expected else []),
            *([_measured_text(self.measured)] if self.measured else []),
            *(f"warning: {text}" for text in self.warnings),
            *(f"not pruned: {name}: {why}" for name, why in self.refused.items()),
        ]
        return "\n".join(lines)

    def _cells(self, choice: Choice) -> list[str]:
        asked = "-" if choice.asked is None else f"{choice.asked:.1f}"
        return [
            choice.group,
            f"{choice.channels}",
            asked,
            f"{choice.channels - len(choice.remove)}",
            choice.metric + (" (single best)" if choice.fell_back else ""),
            choice.runner_up or "-",
            nats_text(choice.predicted_nats),
            nats_text(choice.measured.nats if choice.measured else None),
        ]

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read `to_json` back.

        Raises:
            SelectorError: Fields that are missing, unknown, of another type, or of no network; the
                first is named.
        """
        found = of_json(text, cls, WHAT)
        check_numbers(found, WHAT)
        check_cuts(found, WHAT)
        return found

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
        return cls.from_json(read_text(path, "the plan"))


def goal_text(goal: Goal) -> str:
    """What was asked and what was got, on one line.

    >>> goal_text(Goal("keep_macs", 0.5, 0.4962))
    'asked keep_macs=0.5, got 0.496'
    """
    return f"asked {goal.target}={goal.asked:.4g}, got {goal.got:.3f}"


def _measured_text(change: LossChange) -> str:
    found = f"{nats_text(change.nats)} ± {change.standard_error:.4f}"
    return f"measured: loss {found} nats by the whole plan, on {change.images} images"
