"""What the runs of `networks` come to, with and without repair: areas, counts, differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from selector.tables import count_text, text_table
from training.benchmarks.common.curves import CurvePoint, accuracy_at, area, removed_at_drop
from training.benchmarks.common.differences import difference_of
from training.benchmarks.networks.methods import (
    METHODS,
    MYOPIC,
    PORTFOLIO,
    PRICED,
    RANDOM,
    RANK_MEAN,
    RECONSTRUCTING,
    RIVALS,
    SELECTOR,
    SINGLES,
    VERIFY3,
    always,
)
from training.benchmarks.networks.runs import CurveRun
from training.reporting.markdown import percent_text

SBS, BEST_SINGLE, BEST_RIVAL = (
    "single best (SBS)",
    "best single in hindsight",
    "best torch-pruning in hindsight",
)
SUMMARY: Mapping[str, str] = {
    "auc_selector": SELECTOR,
    "auc_verify3": VERIFY3,
    "auc_sbs": SBS,
    "auc_best_single_hindsight": BEST_SINGLE,
    "auc_fixed_portfolio3": PORTFOLIO,
    "auc_myopic_oracle": MYOPIC,
    "auc_torch_pruning_best": BEST_RIVAL,
    "auc_l1": always("l1"),
    "auc_selector_even": "selector, even",
    "auc_verify1": "selector, verify=1",
    "auc_verify_all": "selector, verify=all",
    "auc_rank_mean": RANK_MEAN,
    "auc_random": RANDOM,
    "auc_taylor": always("taylor"),
    "auc_fisher": always("fisher"),
    "auc_reconstruction": always("reconstruction"),
    "auc_reconstruction_fisher": always("reconstruction_fisher"),
    "auc_l1_selector_shares": "l1, the selector's shares",
    "auc_rank_mean_selector_shares": "rank_mean, the selector's shares",
    "auc_reconstruction_selector_shares": "reconstruction, the selector's shares",
    "auc_reconstruction_fisher_selector_shares": "reconstruction_fisher, the selector's shares",
    "auc_reconstructing_rival": RECONSTRUCTING,
}
"""Key of the summary -> the row whose mean area it is."""

REPAIRED = ", repaired"
"""Ends the name of a row of repaired networks."""


ALWAYS_RUN = (SELECTOR, always("reconstruction_fisher"), always("l1"))
"""A network counts once these have been run on it."""
DIFFERENCES = (
    (SELECTOR, "reconstruction, the selector's shares", "routing_over_reconstruction_points"),
    (
        SELECTOR,
        "reconstruction_fisher, the selector's shares",
        "routing_over_reconstruction_fisher_points",
    ),
    (SELECTOR, "selector, even", "allocation_points"),
    (
        "reconstruction_fisher, the selector's shares",
        always("reconstruction_fisher"),
        "widths_points",
    ),
    (SELECTOR, always("reconstruction_fisher"), "selector_over_reconstruction_fisher_points"),
    (SELECTOR, always("l1"), "selector_over_l1_points"),
    (SELECTOR, "torch-pruning l1 global", "selector_over_torch_pruning_l1_points"),
    (SELECTOR, always("reconstruction"), "selector_over_reconstruction_points"),
    (SELECTOR, RECONSTRUCTING, "selector_over_reconstructing_rival_points"),
)
"""Of repaired networks: method, rival, key of the summary."""

COLUMNS: Mapping[str, str] = {
    "auc": "area 90-30%",
    "accuracy_70": "70% MACs",
    "accuracy_50": "50% MACs",
    "accuracy_30": "30% MACs",
    "removed_at_drop": "weights gone at -5 points",
    "oracle_forwards": "oracle images",
    "seconds": "seconds",
}
"""What is said of a run, and how it is printed; the first five are shares of 1."""


@dataclass(frozen=True)
class Row:
    """One method on one network, in the mean over draws, or its mean over networks."""

    network: str
    method: str
    values: Mapping[str, float | None]
    """One for each of `COLUMNS`; None where the curve does not reach so far."""
    note: str = ""
    """Which method it is in hindsight, why it failed, or how many networks it is the mean of."""
    draws: int = 1
    """Draws of calibration images; of a mean, of the network with the fewest."""
    areas: Mapping[int, float] = field(default_factory=dict)
    """Draw -> mean accuracy over the MACs, of a single network; 0 where it did not get through."""

    @property
    def area(self) -> float:
        """Mean accuracy over the MACs; 0 for a method that did not get through."""
        return self.values["auc"] or 0.0

    @property
    def flat(self) -> dict[str, object]:
        """As the result file holds it."""
        rounded = {k: None if v is None else round(v, 4) for k, v in self.values.items()}
        names = {"network": self.network, "method": self.method}
        return {**names, **rounded, "draws": self.draws, "note": self.note}


Table = Mapping[tuple[str, str], Row]
"""(Network, method) -> row."""


def rows_of(runs: Sequence[CurveRun], single_best: Mapping[str, str]) -> Table:
    """All runs as rows, unrepaired and repaired, with the SBS and the best in hindsight added.

    Args:
        runs: Finished runs.
        single_best: Network -> the arm that was best on the networks that were learnt from.
    """
    table: dict[tuple[str, str], Row] = {}
    for network, method in dict.fromkeys((run.network, run.method) for run in runs):
        some = [run for run in runs if (run.network, run.method) == (network, method)]
        table[network, method] = _row(network, method, some, [run.points for run in some])
        curves = [run.repaired for run in some]
        name = method + REPAIRED
        table[network, name] = _row(network, name, some, curves)
    for network in dict.fromkeys(run.network for run in runs):
        for end in ("", REPAIRED):
            added = {
                SBS: table.get((network, always(single_best[network]) + end)),
                BEST_SINGLE: _best(table, network, list(SINGLES), end),
                BEST_RIVAL: _best(table, network, list(RIVALS), end),
            }
            for name, row in added.items():
                if row is not None:
                    note = row.method.removesuffix(end)
                    table[network, name + end] = replace(row, method=name + end, note=note)
    return table


def _row(
    network: str, method: str, runs: Sequence[CurveRun], curves: Sequence[Sequence[CurvePoint]]
) -> Row:
    """The mean over the draws of one method on one network."""
    columns = [
        {
            "auc": area(curve),
            "accuracy_70": accuracy_at(curve, 0.7),
            "accuracy_50": accuracy_at(curve, 0.5),
            "accuracy_30": accuracy_at(curve, 0.3),
            "removed_at_drop": removed_at_drop(curve),
            "oracle_forwards": float(run.oracle_forwards),
            "seconds": run.seconds,
        }
        for run, curve in zip(runs, curves, strict=True)
        if curve
    ]
    values = {name: _mean([one[name] for one in columns]) if columns else None for name in COLUMNS}
    failed = next((run.failed for run in runs if run.failed), None)
    areas = {
        run.draw: (area(curve) if curve else None) or 0.0
        for run, curve in zip(runs, curves, strict=True)
    }
    return Row(network, method, values, failed or "", len(runs), areas)


def _best(table: Table, network: str, methods: Sequence[str], end: str) -> Row | None:
    """The row of the largest area; none as long as some of the methods were not run."""
    wanted = [method + end for method in methods if METHODS[method].default]
    rows = [table[network, method] for method in wanted if (network, method) in table]
    return max(rows, key=lambda row: row.area) if len(rows) == len(wanted) else None


def compared(table: Table) -> list[str]:
    """The networks that the selector and what it is compared with everywhere have been run on.

    All of the table's networks as long as there is none.
    """
    every = list(dict.fromkeys(network for network, _ in table))
    return [n for n in every if all((n, name) in table for name in ALWAYS_RUN)] or every


def means_of(table: Table) -> list[Row]:
    """The mean of every method over the networks compared, the largest area first.

    Methods that did not get through on one of them have none.
    """
    networks = compared(table)
    means = []
    for method in dict.fromkeys(method for _, method in table):
        rows = [table[n, method] for n in networks if (n, method) in table]
        if len(rows) == len(networks) and all(row.area for row in rows):
            values = {column: _mean([row.values[column] for row in rows]) for column in COLUMNS}
            draws = min(row.draws for row in rows)
            means.append(Row("mean", method, values, f"{len(rows)} networks", draws))
    return sorted(means, key=lambda row: -row.area)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def summary_of(table: Table) -> dict[str, float]:
    """The numbers that the documents quote; what cannot be said yet is left out."""
    found: dict[str, float] = {}
    pairs = {
        "selector_beats_sbs": (SELECTOR, SBS),
        "selector_beats_best_single": (SELECTOR, BEST_SINGLE),
        "selector_beats_torch_pruning": (SELECTOR, BEST_RIVAL),
        "verify3_beats_torch_pruning": (VERIFY3, BEST_RIVAL),
        "verify3_beats_fixed_portfolio3": (VERIFY3, PORTFOLIO),
        "verify3_beats_myopic_oracle": (VERIFY3, MYOPIC),
    }
    found["networks"] = len(compared(table))
    for key, (ours, other) in pairs.items():
        both = [n for n, m in table if m == ours and (n, other) in table]
        if both:
            areas = [(table[n, ours].area, table[n, other].area) for n in both]
            found[key] = sum(one > two for one, two in areas)
            found[f"{key}_of"] = len(both)
    means = {row.method: row for row in means_of(table)}
    for key, method in SUMMARY.items():
        for end, ending in (("", ""), (REPAIRED, "_repaired")):
            if method + end in means:
                found[key + ending] = round(means[method + end].area, 4)
    always_run = [table.get((n, m)) for n in compared(table) for m in ALWAYS_RUN]
    found["draws"] = min((row.draws for row in always_run if row is not None), default=0)
    for ours, other, name in DIFFERENCES:
        found |= _difference(table, ours + REPAIRED, other + REPAIRED, name)
    found |= _difference(table, SELECTOR + REPAIRED, SELECTOR, "repair_points")
    if "selector_over_l1_points_worst" in found:
        found["worst_against_l1_points"] = found["selector_over_l1_points_worst"]
    rivals = [row for method in PRICED if (row := means.get(method + REPAIRED)) is not None]
    if rivals:
        best = max(rivals, key=lambda row: row.area)
        found["auc_best_rival_same_allocation_repaired"] = round(best.area, 4)
        found |= _difference(table, SELECTOR + REPAIRED, best.method, "routing_points")
    if VERIFY3 in means and MYOPIC in means:
        few, many = (means[m].values["oracle_forwards"] or 0.0 for m in (VERIFY3, MYOPIC))
        found["verify3_forwards_over_myopic"] = round(few / many, 4)
    return found


def _difference(table: Table, ours: str, other: str, name: str) -> dict[str, float]:
    """Points of area by which one method is ahead, with a 95 % interval over networks.

    Of every network the mean over the draws that both were run with.
    """
    both = [n for n in compared(table) if (n, ours) in table and (n, other) in table]
    pairs = [(table[n, ours].areas, table[n, other].areas) for n in both]
    points = [
        100 * float(np.mean([one[draw] - two[draw] for draw in sorted(one.keys() & two.keys())]))
        for one, two in pairs
        if one.keys() & two.keys()
    ]
    return difference_of(points, name)


def printed(rows: Sequence[Row]) -> str:
    """Rows as text, the largest area first."""
    ordered = sorted(rows, key=lambda row: -row.area)
    return text_table(["method", *COLUMNS.values(), "note"], [cells(row) for row in ordered])


def cells(row: Row) -> list[str]:
    """A row as text, shares in percent."""
    *shares, forwards, seconds = row.values.values()
    percent = [percent_text(share) for share in shares]
    images = count_text(forwards) if forwards else "0"
    return [row.method, *percent, images, f"{seconds:.0f}", row.note[:60]]
