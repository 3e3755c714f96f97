"""Before and after: what was removed by which metric, what it cost, what it saved."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selector.data.loss import Evaluation
from selector.files import write_text
from selector.network.latency import Timed
from selector.planning.choice import Choice
from selector.planning.plan import Plan, goal_text
from selector.pruning.report_page.verdict import verdict
from selector.pruning.report_values import GroupRow, ReportValues, StepRow
from selector.tables import count_text, data_frame, html_table, nats_text, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class Report(ReportValues):
    """What pruning did to a network; prints as text, saves as JSON and as one HTML file."""

    def __repr__(self) -> str:
        """What came of it, on one line."""
        before, after = (loss_text(one.loss) for one in (self.before, self.after))
        scored = ""
        if self.before.accuracy is not None and self.after.accuracy is not None:
            scored = f", accuracy {self.before.accuracy:.1%} -> {self.after.accuracy:.1%}"
        return (
            f"Report({self.criterion}: {self.rounds} rounds, MACs "
            f"{' -> '.join(map(count_text, self.macs))}, parameters "
            f"{' -> '.join(map(count_text, self.parameters))}, loss {before} -> {after}{scored})"
        )

    def _repr_html_(self) -> str:
        """The tables, for notebooks."""
        return "".join(
            [
                html_table(["network", "before", "after", "left"], self.network_cells()),
                html_table(GROUP_COLUMNS, self.group_cells(), title=repr(self)),
            ]
        )

    def to_pandas(self) -> "DataFrame":
        """The groups as a pandas table; `trusted` is the metric that removed most."""
        return data_frame(
            [
                {**asdict(row), "trusted": row.trusted[0][0] if row.trusted else None}
                for row in self.rows
            ]
        )

    def rounds_to_pandas(self) -> "DataFrame":
        """The rounds as a pandas table."""
        return data_frame([{"round": n, **asdict(s)} for n, s in enumerate(self.steps, 1)])

    def plot(self) -> "Figure":
        """Loss over the multiply-accumulates left, and the widths before and after."""
        from selector.pruning.figures import report_figure  # Matplotlib takes a while.

        return report_figure(self)

    def __str__(self) -> str:
        """Tables of groups, network and rounds, then remarks, and what is not pruned."""
        # Who came second would take the room that the names of sets need.
        narrow = [n for n, name in enumerate(GROUP_COLUMNS) if name != "runner-up"]
        cells = [[row[n] for n in narrow] for row in self.group_cells()]
        groups = text_table([GROUP_COLUMNS[n] for n in narrow], cells)
        network = text_table(["network", "before", "after", "left"], self.network_cells())
        lines = [
            f"criterion {self.criterion}, {self.rounds} rounds, "
            f"{self.oracle_images} images evaluated by the oracle",
            groups,
            network,
            text_table(STEP_COLUMNS, self.step_cells()),
            *self.remarks(),
            f"loss and accuracy on {self.before.images} {self.images_from}",
            *(f"not pruned: {name}: {why}" for name, why in self.refused),
        ]
        return "\n".join(lines)

    @property
    def verdict(self) -> str:
        """What came of the pruning, in one sentence: size, speed, quality, and what is unknown."""
        return verdict(self)

    def remarks(self) -> list[str]:
        """What was asked and got, what was expected, and the warnings, a line each."""
        return [
            *([goal_text(self.goal)] if self.goal else []),
            *([f"{self.expected}, in {self.expected.rounds} rounds"] if self.expected else []),
            *([f"repair: {self.repair.summary}"] if self.repair else []),
            *([f"distillation: {self.distillation}"] if self.distillation else []),
            *(f"warning: {text}" for text in self.warnings),
        ]

    def step_cells(self) -> list[list[str]]:
        """The rounds as cells of a table."""
        return [
            [
                f"{number}",
                f"{step.macs_kept:.1%}",
                nats_text(step.predicted_nats),
                nats_text(step.measured_nats),
                f"{step.halved}" if step.halved else "-",
                "-" if step.loss is None else f"{step.loss:.4f}",
            ]
            for number, step in enumerate(self.steps, 1)
        ]

    def group_cells(self) -> list[list[str]]:
        """The groups as cells of a table."""
        return [
            [
                row.group,
                f"{row.channels_before}",
                "-" if row.asked is None else f"{row.asked:.1f}",
                f"{row.channels_after}",
                ", ".join(f"{metric} {count}" for metric, count in row.trusted),
                row.runner_up or "-",
                f"{row.fell_back}" if row.fell_back else "-",
                nats_text(row.predicted_nats),
                nats_text(row.measured_nats),
            ]
            for row in self.rows
        ]

    def network_cells(self) -> list[list[str]]:
        """The network as cells of a table."""
        cells = [
            ["MACs", *map(count_text, self.macs), f"{self.macs[1] / self.macs[0]:.1%}"],
            [
                "parameters",
                *map(count_text, self.parameters),
                f"{self.parameters[1] / self.parameters[0]:.1%}",
            ],
            ["loss", loss_text(self.before.loss), loss_text(self.after.loss), ""],
        ]
        stages = {"not repaired": self.unrepaired, "not distilled": self.undistilled}
        earlier = {name: found for name, found in stages.items() if found is not None}
        cells += [[f"loss, {name}", "", loss_text(e.loss), ""] for name, e in earlier.items()]
        if self.before.accuracy is not None and self.after.accuracy is not None:
            cells.append(
                ["accuracy", f"{self.before.accuracy:.2%}", f"{self.after.accuracy:.2%}", ""]
            )
        cells += [
            [f"accuracy, {name}", "", f"{e.accuracy:.2%}", ""]
            for name, e in earlier.items()
            if e.accuracy is not None
        ]
        if self.latency is not None:
            times = (f"{1e3 * t:.2f} ms" for t in (self.latency.before, self.latency.after))
            cells.append(
                [f"latency, {self.latency.images} images", *times, f"{self.latency.ratio:.1%}"]
            )
        return cells

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(asdict(self), indent=1)

    def save_html(self, path: str | Path) -> None:
        """Write one HTML file that needs nothing else: no network, no scripts.

        Raises:
            SelectorError: The file cannot be written.
        """
        from selector.pruning.report_page.page import page_of  # Slow to import.

        write_text(path, page_of(self))


GROUP_COLUMNS = (
    "group",
    "channels",
    "asked",
    "left",
    "metrics trusted, channels removed",
    "runner-up",
    "fallbacks",
    "predicted nats",
    "measured nats",
)

STEP_COLUMNS = ("round", "MACs left", "predicted nats", "measured nats", "halved", "loss after")


def loss_text(loss: float) -> str:
    """A loss, or a dash where the images have no labels."""
    return "-" if math.isnan(loss) else f"{loss:.4f}"


def report_of(
    plans: Sequence[Plan],
    whole: Plan,
    before: Evaluation,
    after: Evaluation,
    images_from: str,
    latency: Timed | None = None,
) -> Report:
    """Put a report together from the plans of all rounds."""
    rounds: dict[str, list[Choice]] = {choice.group: [] for choice in whole.choices}
    for plan in plans:
        for choice in plan.choices:
            rounds[choice.group].append(choice)
    rows = [_row(choice, rounds[choice.group]) for choice in whole.choices]
    return Report(
        criterion=whole.criterion,
        rounds=len(plans),
        rows=tuple(rows),
        macs=(whole.macs_before, whole.macs_after),
        parameters=(whole.parameters_before, whole.parameters_after),
        before=before,
        after=after,
        images_from=images_from,
        oracle_images=whole.oracle_images,
        refused=tuple(whole.refused.items()),
        steps=tuple(_step(plan, whole) for plan in plans),
        goal=whole.goal,
        expected=whole.expected,
        warnings=whole.warnings,
        latency=latency,
    )


def _step(plan: Plan, whole: Plan) -> StepRow:
    predicted = [choice.predicted_nats for choice in plan.choices]
    known = [nats for nats in predicted if nats is not None]
    outcome = plan.outcome
    return StepRow(
        macs_kept=plan.macs_after / whole.macs_before,
        predicted_nats=sum(known) if len(known) == len(predicted) else None,
        measured_nats=None if outcome is None else outcome.rise,
        halved=0 if outcome is None else outcome.halved,
        loss=None if outcome is None else outcome.loss,
        accuracy=None if outcome is None else outcome.accuracy,
    )


def _row(choice: Choice, rounds: Sequence[Choice]) -> GroupRow:
    removed: dict[str, int] = {}
    for step in rounds:
        removed[step.metric] = removed.get(step.metric, 0) + len(step.remove)
    measured = [step.measured.nats for step in rounds if step.measured is not None]
    return GroupRow(
        group=choice.group,
        channels_before=choice.channels,
        channels_after=choice.channels - len(choice.remove),
        trusted=tuple(sorted(removed.items(), key=lambda item: -item[1])),
        runner_up=choice.runner_up,
        fell_back=sum(step.fell_back for step in rounds),
        predicted_nats=choice.predicted_nats,
        measured_nats=sum(measured) if len(measured) == len(rounds) else None,
        asked=choice.asked,
    )
