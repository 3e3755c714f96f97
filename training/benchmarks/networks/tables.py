"""What the runs of `networks` come to: areas, best in hindsight, counts, tables, plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from selector.tables import count_text, text_table
from training.benchmarks.common.curves import accuracy_at, area, removed_at_drop
from training.benchmarks.networks.methods import (
    METHODS,
    MYOPIC,
    PORTFOLIO,
    RANDOM,
    RANK_MEAN,
    RIVALS,
    SELECTOR,
    SINGLES,
    VERIFY3,
    always,
)
from training.benchmarks.networks.runs import CurveRun

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
}
"""Key of the summary -> the row whose mean area it is."""


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
    """One method on one network, or its mean over networks."""

    network: str
    method: str
    values: Mapping[str, float | None]
    """One for each of `COLUMNS`; None where the curve does not reach so far."""
    note: str = ""
    """Which method it is in hindsight, why it failed, or how many networks it is the mean of."""

    @property
    def area(self) -> float:
        """Mean accuracy over the MACs; 0 for a method that did not get through."""
        return self.values["auc"] or 0.0

    @property
    def flat(self) -> dict[str, object]:
        """As the result file holds it."""
        rounded = {k: None if v is None else round(v, 4) for k, v in self.values.items()}
        return {"network": self.network, "method": self.method, **rounded, "note": self.note}


Table = Mapping[tuple[str, str], Row]
"""(Network, method) -> row."""


def rows_of(runs: Sequence[CurveRun], single_best: Mapping[str, str]) -> Table:
    """All runs as rows, with the SBS and the best in hindsight of each network added.

    Args:
        runs: Finished runs.
        single_best: Network -> the arm that was best on the networks that were learnt from.
    """
    table = {(run.network, run.method): _row(run) for run in runs}
    for network in dict.fromkeys(run.network for run in runs):
        sbs = table.get((network, always(single_best[network])))
        added = {
            SBS: sbs,
            BEST_SINGLE: _best(table, network, list(SINGLES)),
            BEST_RIVAL: _best(table, network, list(RIVALS)),
        }
        for name, row in added.items():
            if row is not None:
                table[network, name] = replace(row, method=name, note=row.method)
    return table


def _row(run: CurveRun) -> Row:
    values = {
        "auc": area(run.points),
        "accuracy_70": accuracy_at(run.points, 0.7),
        "accuracy_50": accuracy_at(run.points, 0.5),
        "accuracy_30": accuracy_at(run.points, 0.3),
        "removed_at_drop": removed_at_drop(run.points),
        "oracle_forwards": float(run.oracle_forwards),
        "seconds": run.seconds,
    }
    return Row(run.network, run.method, values, run.failed or "")


def _best(table: Table, network: str, methods: Sequence[str]) -> Row | None:
    """The row of the largest area; none as long as some of the methods were not run."""
    wanted = [method for method in methods if METHODS[method].default]
    rows = [table[network, method] for method in wanted if (network, method) in table]
    return max(rows, key=lambda row: row.area) if len(rows) == len(wanted) else None


def compared(table: Table) -> list[str]:
    """The networks that the selector and all it is compared with have been run on.

    All of the table's networks as long as there is none.
    """
    every = list(dict.fromkeys(network for network, _ in table))
    wanted = (SELECTOR, BEST_SINGLE, BEST_RIVAL)
    return [n for n in every if all((n, name) in table for name in wanted)] or every


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
            means.append(Row("mean", method, values, f"{len(rows)} networks"))
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
        if method in means:
            found[key] = round(means[method].area, 4)
    if VERIFY3 in means and MYOPIC in means:
        few, many = (means[m].values["oracle_forwards"] or 0.0 for m in (VERIFY3, MYOPIC))
        found["verify3_forwards_over_myopic"] = round(few / many, 4)
    return found


def printed(rows: Sequence[Row]) -> str:
    """Rows as text, the largest area first."""
    ordered = sorted(rows, key=lambda row: -row.area)
    return text_table(["method", *COLUMNS.values(), "note"], [cells(row) for row in ordered])


def cells(row: Row) -> list[str]:
    """A row as text, shares in percent."""
    *shares, forwards, seconds = row.values.values()
    percent = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
    images = count_text(forwards) if forwards else "0"
    return [row.method, *percent, images, f"{seconds:.0f}", row.note[:60]]
