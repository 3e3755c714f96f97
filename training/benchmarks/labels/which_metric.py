"""Which metric when: mean regret of every arm in every kind of situation that was recorded.

A decision's regrets are normalised and capped at 3 (`learning/regret.py`), on both splits together.
They are averaged within a network first, so that every network counts the same; the standard error
is that of the mean over networks. Networks that others trained are left out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from selector.learning.regret import CAP
from selector.records.decision import GroupFacts
from selector.records.records import Records
from selector.tables import text_table
from selector.typing import Matrix, Names
from training.audit.audit import Audit, judge
from training.evaluation.weights import network_of
from training.reporting.markdown import markdown_table
from training.reporting.marked_part import put
from training.reporting.result_file import RESULTS, write_result

mpl.use("Agg")

NAME = "which_metric"
PICTURE = "which-metric.webp"
FEWEST = 5
"""Networks that a situation must have to be shown."""
DEPTHS = ("first third", "middle third", "last third")


@dataclass(frozen=True, eq=False)
class Situation:
    """Decisions that have something in common, and how every arm does there."""

    name: str
    decisions: int
    networks: int
    regret: Matrix
    """Mean over networks, shape (arms,); NaN where an arm never applies."""
    error: Matrix
    """Its standard error."""
    right: Matrix
    """Share of the decisions in which the arm's choice is the best, or equal to it."""

    def ranking(self) -> list[int]:
        """Arms that apply, the best first."""
        order = np.argsort(self.regret)
        return [int(arm) for arm in order if not np.isnan(self.regret[arm])]


def run(data: Path, results: Path = RESULTS) -> None:
    """Judge every arm in every situation; print the table and write `results/which_metric.json`."""
    records = Records.load(data).own()
    audit = judge(records)
    found = situations(records, audit)
    print(text_table(["situation", "decisions", "networks", "best three"], _cells(found, audit)))
    rows: list[Mapping[str, object]] = [
        {
            "situation": one.name,
            "decisions": one.decisions,
            "networks": one.networks,
            "regret": _by_arm(audit, one.regret),
            "standard_error": _by_arm(audit, one.error),
            "right": _by_arm(audit, one.right),
        }
        for one in found
    ]
    everywhere = found[0]
    best = everywhere.ranking()[0]
    beaten = [one for one in found[1:] if one.ranking()[0] != best]
    clearly = [one for one in beaten if _clearly_better(one, best)]
    summary = {
        "situations": float(len(found) - 1),
        "decisions": float(everywhere.decisions),
        "networks": float(everywhere.networks),
        "best_regret": round(float(everywhere.regret[best]), 4),
        "best_is_right": round(float(everywhere.right[best]), 4),
        "situations_with_another_best": float(len(beaten)),
        "of_these_beyond_two_errors": float(len(clearly)),
    }
    print(write_result(NAME, summary, rows, results))


def _clearly_better(one: Situation, arm: int) -> bool:
    """Whether the best arm here is ahead of another by more than two of both standard errors."""
    best = one.ranking()[0]
    error = float(np.hypot(one.error[best], one.error[arm]))
    return bool(one.regret[arm] - one.regret[best] > 2 * error)


def situations(records: Records, audit: Audit) -> list[Situation]:
    """All decisions first, then every situation of enough networks."""
    pairs = [
        (network_of(group.network), decision.view.facts)
        for group, decision, _ in records.decisions()
    ]
    networks = np.array([network for network, _ in pairs])
    facts = [one for _, one in pairs]
    labels: dict[str, Names] = {
        "layer": np.array([kind_of(one) for one in facts]),
        "place": np.array([place_of(one) for one in facts]),
        "channels": audit.labels["channels"],
        "state": audit.labels["state"],
        "data set": audit.labels["data set"],
    }
    found = [_situation("all", np.ones(len(facts), bool), networks, audit)]
    for label, values in labels.items():
        for value in sorted(
            set(values.tolist()), key=lambda one: (one in DEPTHS and DEPTHS.index(one), one)
        ):
            one = _situation(f"{label}: {value}", values == value, networks, audit)
            if one.networks >= FEWEST:
                found.append(one)
    return found


def kind_of(facts: GroupFacts) -> str:
    """The kind of layer that loses outputs."""
    if facts.linear_producer:
        return "linear"
    between = "depthwise behind it" if facts.depthwise else "no depthwise behind it"
    return f"{facts.kernel:.0f}x{facts.kernel:.0f} convolution, {between}"


def place_of(facts: GroupFacts) -> str:
    """Where in the network the layer stands."""
    return DEPTHS[min(2, int(3 * facts.relative_depth))]


def _situation(
    name: str, where: "np.ndarray[tuple[int], np.dtype[np.bool_]]", networks: Names, audit: Audit
) -> Situation:
    there = np.unique(networks[where])
    lowest = np.nanmin(audit.both[where], 1, keepdims=True)
    right = (audit.both[where] <= lowest + 1e-12).mean(0)
    # An arm counts in a network where it applies in each of its decisions.
    means = np.stack([audit.both[where & (networks == name)].mean(0) for name in there])
    known = ~np.isnan(means)
    number = known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, means, 0).sum(0) / number
        spread = (np.where(known, means - mean, 0) ** 2).sum(0) / (number - 1)
        mean[number < len(there)] = np.nan
        return Situation(name, int(where.sum()), len(there), mean, np.sqrt(spread / number), right)


def _by_arm(audit: Audit, values: Matrix) -> dict[str, float | None]:
    return {
        arm: None if np.isnan(value) else round(float(value), 4)
        for arm, value in zip(audit.arms, values, strict=True)
    }


def _cells(found: list[Situation], audit: Audit) -> list[list[str]]:
    return [
        [
            one.name,
            f"{one.decisions:,}",
            f"{one.networks}",
            ", ".join(f"{audit.arms[a]} {one.regret[a]:.2f}" for a in one.ranking()[:3]),
        ]
        for one in found
    ]


def update_page(page: Path, results: Path = RESULTS) -> None:
    """Put the table into the page, and the picture beside it, from the result file."""
    found = json.loads((results / f"{NAME}.json").read_text(encoding="utf-8"))
    put(page, "which-metric", markdown_table(COLUMNS, list(_page_rows(found["rows"]))))
    draw(found["rows"], page.parent / "pictures" / PICTURE)


COLUMNS = ("situation", "networks", "best", "is right in", "second", "third", "`l1`", "worst")


def _page_rows(rows: list[dict[str, object]]) -> Iterator[list[str]]:
    for row in rows:
        regret, error = row["regret"], row["standard_error"]
        assert isinstance(regret, dict)
        assert isinstance(error, dict)
        order = sorted((arm for arm in regret if regret[arm] is not None), key=regret.__getitem__)

        def said(
            arm: str, regret: dict[str, float] = regret, error: dict[str, float] = error
        ) -> str:
            return f"`{arm}` {regret[arm]:.2f} ± {error[arm]:.2f}"

        right = row["right"]
        assert isinstance(right, dict)
        best, *others = map(said, order[:3])
        last = [*others, f"{regret['l1']:.2f}", said(order[-1])]
        yield [str(row["situation"]), str(row["networks"]), best, f"{right[order[0]]:.0%}", *last]


def draw(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Draw the regrets of all arms in all situations as a heat map."""
    regrets = [cast(Mapping[str, float | None], row["regret"]) for row in rows]
    first = regrets[0]
    arms = sorted(first, key=lambda arm: CAP if first[arm] is None else first[arm] or 0.0)
    table = np.array([[one[arm] for arm in arms] for one in regrets], float)  # None becomes NaN.
    figure, axes = plt.subplots(figsize=(11, 0.42 * len(rows) + 2.4), layout="constrained")
    image = axes.imshow(table, cmap="viridis_r", aspect="auto", vmin=0)
    axes.set_xticks(range(len(arms)), arms, rotation=55, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [str(row["situation"]) for row in rows])
    middle = np.nanmin(table) + 0.55 * (np.nanmax(table) - np.nanmin(table))
    for (y, x), value in np.ndenumerate(table):
        if not np.isnan(value):
            axes.text(
                x,
                y,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if value > middle else "black",
                weight="bold" if value == np.nanmin(table[y]) else "normal",
            )
    figure.colorbar(image, ax=axes, label="mean normalised regret; lower is better", pad=0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
