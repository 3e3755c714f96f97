"""What the runs of `founding` come to: where curves cross, tables, plots, the summary."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt

from selector.tables import text_table
from training.benchmarks.common.curves import first_below
from training.benchmarks.founding.methods import METHODS, SINGLES
from training.benchmarks.founding.runs import (
    DROP,
    FOLDER,
    NETWORKS,
    REPEATS,
    FoundingPoint,
    FoundingRun,
    read_runs,
    run_missing,
)
from training.reporting.markdown import cell
from training.reporting.result_file import RESULTS, write_result

mpl.use("Agg")

OURS = "ours"
PAPER = "composition"
PLOTTED = (*SINGLES, PAPER, OURS)
Halves = tuple[int, ...]
ALL: Halves = (0, 1)
SECOND: Halves = (1,)
"""Halves of the test images that an accuracy is the mean of."""


def run(
    networks: Sequence[str] = NETWORKS,
    methods: Sequence[str] = tuple(METHODS),
    repeats: int = REPEATS,
    jobs: int = 2,
    minutes: float | None = None,
) -> None:
    """Run what is missing of these; print the tables of all runs, write the results and plots."""
    run_missing(networks, methods, repeats, jobs, minutes)
    runs = read_runs(FOLDER)
    rows: list[Mapping[str, object]] = []
    summary: dict[str, float] = {}
    for network in dict.fromkeys(run.network for run in runs):
        by_method = {m: [r for r in runs if (r.network, r.method) == (network, m)] for m in METHODS}
        found = {method: some for method, some in by_method.items() if some}
        table = [_row(network, method, some, ALL) for method, some in found.items()]
        # What was chosen on the first half of the test images is judged on the second.
        held_out = [m for m in (PAPER, "+ held-out") if m in found]
        table += [_row(network, m, found[m], SECOND) for m in held_out]
        print(
            text_table(
                list(table[0]), [[cell(value, "") for value in row.values()] for row in table]
            )
        )
        print(_plot(network, found))
        summary |= _summary(network, table)
        rows += table
    print(write_result("founding", summary, rows))


def crossing(
    points: Sequence[FoundingPoint], halves: Halves = ALL
) -> tuple[float, float, float] | None:
    """Where top-1 first falls by `DROP`: share removed, oracle's forwards, scoring forwards.

    Interpolated between the last point above and the first below; None where it never falls.
    """
    accuracies = [float(np.mean([p.accuracy[h] for h in halves])) for p in points]
    place = first_below(accuracies, accuracies[0] - DROP)
    if place is None:
        return None
    table = [(p.removed, p.oracle_forwards, p.scoring_forwards) for p in points]
    removed, oracle, scoring = np.array(
        [np.interp(place, range(len(table)), c) for c in zip(*table, strict=True)]
    )
    return float(removed), float(oracle), float(scoring)


def _row(
    network: str, method: str, runs: Sequence[FoundingRun], halves: Halves
) -> dict[str, object]:
    found = [c for c in (crossing(run.points, halves) for run in runs) if c is not None]
    table = np.array(found) if found else np.full((1, 3), np.nan)
    removed, oracle, scoring = table.mean(0)
    return {
        "network": network,
        "method": method,
        "test images": "all" if halves == ALL else "second half",
        "repeats": len(found),
        "removed_percent": round(100 * float(removed), 2),
        "spread_percent": round(100 * float(table[:, 0].std(ddof=1)), 2)
        if len(found) > 1
        else None,
        "oracle_forwards": round(float(oracle)),
        "scoring_forwards": round(float(scoring)),
        "channels_removed": _channels(runs, halves),
    }


def _channels(runs: Sequence[FoundingRun], halves: Halves) -> dict[str, float]:
    """Mean channels gone from each group at the last point above the limit."""
    total: dict[str, float] = {}
    for run in runs:
        accuracies = [float(np.mean([p.accuracy[h] for h in halves])) for p in run.points]
        below = [n for n, value in enumerate(accuracies) if value <= accuracies[0] - DROP]
        last = run.points[below[0] - 1] if below else run.points[-1]
        for group, count in last.channels.items():
            total[group] = total.get(group, 0.0) + count / len(runs)
    return {group: round(count, 1) for group, count in sorted(total.items())}


def _summary(network: str, table: Sequence[Mapping[str, object]]) -> dict[str, float]:
    whole = {str(row["method"]): row for row in table if row["test images"] == "all"}
    short = network.removeprefix("founding_").replace("-", "")

    def removed(method: str) -> float:
        return float(str(whole[method]["removed_percent"]))

    def forwards(method: str) -> float:
        return sum(float(str(whole[method][k])) for k in ("oracle_forwards", "scoring_forwards"))

    summary = {}
    singles = [name for name in SINGLES if name in whole]
    if singles:
        summary[f"{short}_best_single_removed"] = max(map(removed, singles))
    if PAPER in whole:
        summary[f"{short}_oracle_removed"] = removed(PAPER)
    if OURS in whole:
        summary[f"{short}_ours_removed"] = removed(OURS)
    if OURS in whole and PAPER in whole:
        summary[f"{short}_ours_forwards_ratio"] = round(forwards(OURS) / forwards(PAPER), 4)
    return summary


def _plot(network: str, found: Mapping[str, Sequence[FoundingRun]]) -> Path:
    """Accuracy over the share of convolution weights removed: mean, and one deviation."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for method in [m for m in PLOTTED if m in found]:
        most = min(run.points[-1].removed for run in found[method])
        shares = np.linspace(0, most, 60)
        curves = np.array([_curve(run, shares) for run in found[method]])
        mean, spread = curves.mean(0), curves.std(0)
        bold = 2.2 if method in (PAPER, OURS) else 1.0
        (line,) = axes.plot(100 * shares, 100 * mean, label=method, linewidth=bold)
        axes.fill_between(
            100 * shares,
            100 * (mean - spread),
            100 * (mean + spread),
            alpha=0.15,
            color=line.get_color(),
            linewidth=0,
        )
    base = 100 * float(np.mean(next(iter(found.values()))[0].points[0].accuracy))
    axes.axhline(base - 100 * DROP, color="grey", linestyle=":", linewidth=1)
    axes.set_xlabel("% of convolution weights removed")
    axes.set_ylabel("top-1 on the test images, %")
    axes.set_title(f"{network}: without retraining")
    axes.legend(fontsize=8)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{network}.png"
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return path


def _curve(run: FoundingRun, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    removed = [point.removed for point in run.points]
    curve: npt.NDArray[np.float64] = np.interp(
        shares, removed, [float(np.mean(point.accuracy)) for point in run.points]
    )
    return curve
