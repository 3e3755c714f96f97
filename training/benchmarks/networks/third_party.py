"""Third-party networks that are kept for tests: what is lost at half of their MACs, by method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from selector.tables import text_table
from training.benchmarks.common.curves import accuracy_at, area
from training.benchmarks.common.differences import FEWEST, difference_of
from training.benchmarks.networks.methods import SELECTOR, always
from training.benchmarks.networks.runs import CurveRun
from training.reporting.markdown import markdown_table, percent_text
from training.reporting.result_file import result_if_there
from training.zoo.shared_third_party import IMAGENET

L1 = always("l1")
SAME_WIDTHS = "reconstruction_fisher, the selector's shares"
SHOWN: Mapping[str, str] = {
    L1: "l1",
    "torch-pruning taylor global": "torch_pruning_taylor",
    "torch-pruning l1 global": "torch_pruning_l1",
    SAME_WIDTHS: "reconstruction_fisher_selector_shares",
    SELECTOR: "selector",
}
"""Method -> what it is called in a row."""
TITLES: Mapping[str, str] = {
    "unpruned": "unpruned",
    "selector_50_unrepaired": "selector, no repair",
    "selector_50": "selector",
    "l1_50": "L1",
    "torch_pruning_taylor_50": "Torch-Pruning Taylor",
    "torch_pruning_l1_50": "Torch-Pruning L1",
    "selector_30": "selector, 30%",
    "l1_30": "L1, 30%",
}
"""Columns of the documents; repaired where nothing else is said, at half the MACs by default."""
GAINS: Mapping[str, str] = {
    L1: "third_party_over_l1_points",
    "torch-pruning taylor global": "third_party_over_torch_pruning_taylor_points",
    "torch-pruning l1 global": "third_party_over_torch_pruning_l1_points",
    SAME_WIDTHS: "third_party_routing_points",
}
"""Rival -> key of the summary; of repaired networks, in points of area."""
WORDS: Mapping[str, str] = {
    GAINS[L1]: "The selector over L1 with even widths",
    GAINS["torch-pruning taylor global"]: "The selector over Torch-Pruning's global Taylor pruner",
    GAINS["torch-pruning l1 global"]: "The selector over Torch-Pruning's global L1 pruner",
    GAINS[SAME_WIDTHS]: "Routing over `reconstruction_fisher` everywhere, at the selector's widths",
}
"""Key of the summary -> what the documents say of it."""


def rows_of(runs: Sequence[CurveRun], datasets: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row for each network: accuracies, 0 to 1; None where a method did not get there.

    Args:
        runs: Finished runs; of several draws the mean counts.
        datasets: Network -> data set.
    """
    rows = []
    for network in dict.fromkeys(run.network for run in runs):
        row: dict[str, Any] = {"part": "third_party", "network": network}
        row |= {"dataset": datasets[network], "unpruned": None}
        for method, name in SHOWN.items():
            some = [r for r in runs if (r.network, r.method) == (network, method) and r.repaired]
            if some:
                row["unpruned"] = some[0].points[0].accuracy
            for share in (0.5, 0.3):
                key = f"{name}_{100 * share:.0f}"
                row[key] = _mean([accuracy_at(run.repaired, share) for run in some])
                row[f"{key}_unrepaired"] = _mean([accuracy_at(run.points, share) for run in some])
            row[f"{name}_area"] = _mean([area(run.repaired) for run in some])
        rows.append(row)
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 5) if known and len(known) == len(values) else None


def summary_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians of what is lost at half the MACs, in points, and differences of areas.

    Both are of the networks that a method got through on, whose number stands beside them.
    """
    found: dict[str, float] = {"third_party_tested": len(rows)} if rows else {}
    for method, name in SHOWN.items():
        end = "" if method == SELECTOR else f"_{name}"
        for state in ("", "_unrepaired"):
            lost = [
                100 * (row["unpruned"] - row[f"{name}_50{state}"])
                for row in rows
                if row[f"{name}_50{state}"] is not None
            ]
            if len(lost) >= FEWEST:
                key = f"third_party_median_drop_50{end}{state}"
                found |= {key: round(median(lost), 2), f"{key}_networks": len(lost)}
    for method, key in GAINS.items():
        pairs = [(row["selector_area"], row[f"{SHOWN[method]}_area"]) for row in rows]
        points = [100 * (ours - other) for ours, other in pairs if None not in (ours, other)]
        found |= difference_of(points, key)
    return found


def imagenet_summary(results: Path) -> dict[str, float]:
    """What is lost at four fifths of the MACs on ImageNet networks, from `repair.json`."""
    found = result_if_there("repair", results) or {"rows": []}
    rows = [
        row["accuracies"]
        for row in found["rows"]
        if row.get("dataset") == IMAGENET and row["role"] == "test" and row["failed"] is None
    ]
    if not rows:
        return {}
    lost = {s: [100 * (row["unpruned"] - row[s]) for row in rows] for s in ("pruned", "repaired")}
    return {
        "imagenet_networks": len(rows),
        "imagenet_median_drop_80": round(median(lost["repaired"]), 2),
        "imagenet_median_drop_80_unrepaired": round(median(lost["pruned"]), 2),
    }


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [row["network"], row["dataset"], *(percent_text(row[name]) for name in TITLES)]


def printed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as text."""
    return text_table(["network", "data", *TITLES.values()], [_cells(row) for row in rows])


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table, and the medians of what is lost."""
    lines = [_cells(row) for row in rows]
    lost = []
    for name in TITLES:
        points = [100 * (r["unpruned"] - r[name]) for r in rows if r[name] is not None]
        some = f" ({len(points)} of {len(rows)})" if len(points) < len(rows) else ""
        lost.append(f"-{median(points):.1f}{some}" if points and name != "unpruned" else "")
    lines.append(["*median of what is lost*", "", *lost])
    return markdown_table(["network", "data", *TITLES.values()], lines)
