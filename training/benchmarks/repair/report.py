"""`repair` as it is shown: tables, the result file, the table of the documents."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any

from selector.errors import SelectorError
from selector.tables import text_table
from training.benchmarks.repair import memory, speed
from training.benchmarks.repair.cases import OWN, chosen_cases, every_case
from training.benchmarks.repair.memory import MemoryRun
from training.benchmarks.repair.runs import FILE, RepairRun, finished, run_missing
from training.benchmarks.repair.speed import SUBJECTS, SpeedRun
from training.reporting.markdown import in_list, markdown_table, percent_text
from training.reporting.marked_part import put
from training.reporting.result_file import read_result, write_result
from training.zoo.shared_third_party import IMAGENET

STATES = ("unpruned", "pruned", "repaired", "distilled")
COSTS = ("scoring", "prune", "repair", "distil")
COLUMNS = ("network", "role", "MMACs", "kept", "rounds", *STATES, "passes", *COSTS)


def run(networks: Sequence[str] | None, minutes: float | None, results: Path) -> None:
    """Run the missing networks, then show all finished ones.

    Args:
        networks: Names; None for all whose images are here.
        minutes: No run is begun later than this.
        results: Where runs and result file go.
    """
    run_missing(chosen_cases(networks), results / FILE, minutes)
    show(results)


def run_speed(networks: Sequence[str] | None, minutes: float | None, results: Path) -> None:
    """Time the missing networks, then show all finished runs.

    Raises:
        SelectorError: An unknown network.
    """
    speed.run_missing(_timed(networks), results / speed.FILE, minutes)
    show(results)


def run_memory(networks: Sequence[str] | None, minutes: float | None, results: Path) -> None:
    """Measure the peak memory of the missing networks, then show all finished runs.

    Raises:
        SelectorError: An unknown network.
    """
    memory.run_missing(_timed(networks), results / memory.FILE, minutes)
    show(results)


def _timed(networks: Sequence[str] | None) -> list[str]:
    """The networks whose cost is measured, or those of these names."""
    names = list(SUBJECTS) if networks is None else list(networks)
    for name in names:
        if name not in SUBJECTS:
            raise SelectorError(f"unknown network {name!r}; known: {', '.join(SUBJECTS)}")
    return names


def show(results: Path) -> None:
    """Print all runs that are there and write the result file."""
    runs = finished(list(every_case().values()), results / FILE)
    times = speed.finished(results / speed.FILE)
    peaks = memory.finished(results / memory.FILE)
    if runs:
        print(text_table(COLUMNS, [row_of(asdict(one)) for one in runs]))
    for one in runs:
        if one.failed is not None:
            print(f"{one.network}: {one.failed}")
    if times:
        print(
            text_table(list(asdict(times[0])), [[str(v) for v in vars(t).values()] for t in times])
        )
    for peak in peaks:
        print(
            f"{peak.network}: {peak.repair_mib:.0f} MiB to repair, {peak.scoring_mib:.0f} to score"
        )
    summary = summary_of(runs, times, peaks)
    print("\n".join(f"{key}: {value:g}" for key, value in summary.items()))
    rows = [*map(asdict, runs), *map(asdict, times), *map(asdict, peaks)]
    print(write_result("repair", summary, rows, results))


def summary_of(
    runs: Sequence[RepairRun], times: Sequence[SpeedRun], peaks: Sequence[MemoryRun] = ()
) -> dict[str, float]:
    """The numbers that the documents quote; what was not measured is absent.

    Gains are differences of accuracies in points, of third-party networks alone: `gain` of the
    repaired network over the pruned one, `gain_distilled` of the distilled network over the pruned
    one, `distilled_over_repaired` of the distilled over the repaired one. `test_median_drop_50` is
    what networks kept for tests lose at half their MACs, without ImageNet's. `memory_ratio` is the
    largest.
    """
    summary: dict[str, float] = {}
    whole = [run for run in runs if run.failed is None]
    for one in whole:
        if one.network == OWN and one.accuracies.distilled is not None:
            summary["distilled_cy_resnet20_30"] = round(100 * one.accuracies.distilled, 2)
    others = [run for run in whole if run.network != OWN]
    if others:
        gains = _gains(others, "pruned", "repaired")
        summary["third_party_networks"] = len(others)
        summary["third_party_mean_gain_points"] = round(mean(gains), 3)
        summary["third_party_worst_points"] = round(min(gains), 3)
    if taught := [run for run in others if run.accuracies.distilled is not None]:
        gains = _gains(taught, "pruned", "distilled")
        more = _gains(taught, "repaired", "distilled")
        summary["third_party_distilled_networks"] = len(taught)
        summary["third_party_mean_gain_distilled_points"] = round(mean(gains), 3)
        summary["third_party_mean_distilled_over_repaired_points"] = round(mean(more), 3)
    summary |= _drops([run for run in others if run.role == "test" and run.dataset != IMAGENET])
    summary |= {f"{time.network}_time_ratio": round(time.ratio, 3) for time in times}
    if peaks:
        summary["memory_ratio"] = round(max(peak.ratio for peak in peaks), 3)
    for peak in peaks:
        summary[f"{peak.network}_repair_mib"] = peak.repair_mib
        summary[f"{peak.network}_scoring_mib"] = peak.scoring_mib
    return summary


def _drops(runs: Sequence[RepairRun]) -> dict[str, float]:
    """Medians of the points that networks kept for tests lose, in every state that all have."""
    found: dict[str, float] = {"test_networks": len(runs)} if runs else {}
    for state in STATES[1:]:
        if runs and all(vars(run.accuracies)[state] is not None for run in runs):
            lost = [-gain for gain in _gains(runs, "unpruned", state)]
            found[f"test_median_drop_50_{state}"] = round(median(lost), 2)
    return found


def _gains(runs: Sequence[RepairRun], before: str, after: str) -> list[float]:
    """Points by which one state is more accurate than another, for every run."""
    return [100 * (vars(run.accuracies)[after] - vars(run.accuracies)[before]) for run in runs]


def row_of(run: Mapping[str, Any]) -> list[str]:
    """A line of the table from a run's fields; accuracies in percent, CPU time in seconds."""
    shares = [run["accuracies"][state] for state in STATES]
    percent = [percent_text(share) for share in shares]
    seconds = [f"{run['seconds'][what]:.1f}" for what in COSTS]
    if not run["passes"]:
        seconds[-1] = "-"
    head = [
        run["network"],
        run["role"],
        f"{run['macs'] / 1e6:.1f}",
        f"{100 * run['keep_macs']:.0f}%",
    ]
    return [*head, str(run["rounds"]), *percent, str(run["passes"]), *seconds]


def sentences(summary: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the runs say, in words; what was not measured is left out."""
    found = []
    if "third_party_networks" in summary:
        large = sum(row["dataset"] == IMAGENET and row["failed"] is None for row in rows)
        found.append(
            f"Over {summary['third_party_networks']:.0f} networks of others ({large} on ImageNet) "
            f"repair is worth {summary['third_party_mean_gain_points']:.1f} points in the mean; "
            f"the network that gains least changes by "
            f"{summary['third_party_worst_points']:+.1f}."
        )
    if "test_median_drop_50_repaired" in summary:
        states = [state for state in STATES[1:] if f"test_median_drop_50_{state}" in summary]
        lost = [f"{summary[f'test_median_drop_50_{state}']:.1f} {state}" for state in states]
        found.append(
            f"At half the MACs, the {summary['test_networks']:.0f} of role `test` (ImageNet apart) "
            f"lose in the median, in points: {', '.join(lost)}."
        )
    if "third_party_mean_distilled_over_repaired_points" in summary:
        found.append(
            "Distillation with the same 256 images adds "
            f"{summary['third_party_mean_distilled_over_repaired_points']:.1f} points in the mean "
            "to repair. Where it does not lower the divergence on held-out images, the repaired "
            "weights stay."
        )
    for row in rows:
        states = row["accuracies"]
        if row["network"] == OWN and states["distilled"] is not None:
            percent = [f"{100 * states[state]:.1f}" for state in STATES]
            found.append(
                f"With {row['images']} images and a cut to {100 * row['keep_macs']:.0f} % of the "
                f"MACs, {OWN} goes from {percent[0]} % to {percent[1]} pruned, {percent[2]} "
                f"repaired and {percent[3]} distilled."
            )
    return found


def update_page(page: Path, results: Path) -> None:
    """Put the table of the result file, and what it says, between the marks of the document.

    Raises:
        SelectorError: No result file, or no marks.
    """
    found = read_result("repair", "benchmark-repair", results)
    rows = [row for row in found["rows"] if "accuracies" in row]
    words = in_list(sentences(found["summary"], rows))
    table = markdown_table(list(COLUMNS), [row_of(row) for row in rows])
    put(page, "repair", f"{table}\n\n{words}".strip())
