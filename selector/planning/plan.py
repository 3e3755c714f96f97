"""A plan as a value: what goes from every group and why; it prints, saves and loads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path

from selector.data.loss import LossChange
from selector.errors import SelectorError
from selector.files import read_text, write_text
from selector.learning.explanation import Explanation
from selector.network.surgery import Cut, cuts_of
from selector.network.tracing import Groups
from selector.planning.choice import Choice
from selector.planning.expectation import Expected
from selector.serialisation import of_json
from selector.tables import count_text, nats_text, text_table

WHAT = "a plan saved by to_json"


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
            raise SelectorError(_unexplained(self.criterion))
        if choice.against_trusted is None:
            return choice.explanation
        return choice.explanation.verified(choice.metric, choice.against_trusted)

    def __str__(self) -> str:
        """The plan as a table."""
        columns = ["group", "channels", *(["asked"] if self._asked else []), "left"]
        columns += ["metric trusted", "runner-up", "predicted nats", "measured nats"]
        lines = [
            text_table(columns, [self._cells(choice) for choice in self.choices]),
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

    @property
    def _asked(self) -> bool:
        return any(choice.asked is not None for choice in self.choices)

    def _cells(self, choice: Choice) -> list[str]:
        asked = "-" if choice.asked is None else f"{choice.asked:.1f}"
        return [
            choice.group,
            f"{choice.channels}",
            *([asked] if self._asked else []),
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
        _check_numbers(found)
        _check_cuts(found)
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


def _check_numbers(plan: Plan) -> None:
    """Refuse costs and counts that no network has."""
    for name in ("macs", "parameters"):
        before, after = (getattr(plan, f"{name}_{when}") for when in ("before", "after"))
        if not 0 <= after <= before:
            raise SelectorError(
                f"this is not {WHAT}: {name}_after={after} must lie between 0 and "
                f"{name}_before={before}"
            )
    if plan.oracle_images < 0:
        raise SelectorError(f"this is not {WHAT}: oracle_images={plan.oracle_images} is negative")
    groups = [choice.group for choice in plan.choices]
    if len(set(groups)) < len(groups):
        twice = next(name for name in groups if groups.count(name) > 1)
        raise SelectorError(f"this is not {WHAT}: choices name group {twice!r} twice")


def _check_cuts(plan: Plan) -> None:
    """Refuse cuts that are not those of the choices: one of the two was edited.

    A channel of a group is one output of its root, or as many in every one where the root is a
    grouped convolution.
    """
    roots = {cut.layer: cut.indices for cut in plan.cuts if cut.side == "out"}
    for cut in plan.cuts:
        if len(set(cut.indices)) < len(cut.indices) or min(cut.indices, default=0) < 0:
            raise SelectorError(
                f"this is not {WHAT}: cuts of layer {cut.layer!r} repeat a position, or name one "
                "below 0"
            )
    for choice in plan.choices if plan.cuts else ():
        # Groups of a convolution follow one another, with a position of each channel in all.
        gone = {index % choice.channels for index in roots.get(choice.group, ())}
        if gone != set(choice.remove):
            raise SelectorError(
                f"remove of group {choice.group!r} is not what the plan's cuts take; where you "
                "edited it, take the field 'cuts' out, and give apply_plan batches"
            )


def goal_text(goal: Goal) -> str:
    """What was asked and what was got, on one line.

    >>> goal_text(Goal("keep_macs", 0.5, 0.4962))
    'asked keep_macs=0.5, got 0.496'
    """
    return f"asked {goal.target}={goal.asked:.4g}, got {goal.got:.3f}"


def _measured_text(change: LossChange) -> str:
    found = f"{nats_text(change.nats)} ± {change.standard_error:.4f}"
    return f"measured: loss {found} nats by the whole plan, on {change.images} images"


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
