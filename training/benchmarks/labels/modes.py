"""Which way of measuring a removal tells what is left after repair? The table, and the result file.

Ways of measuring: plain, with means, with batch statistics, with what channels predict; each read
as the loss of the labels and as the divergence from the unpruned network's softened outputs. What
is true: the network cut, repaired as a whole, and read on test images.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from scipy.stats import spearmanr

from selector.tables import text_table
from training.benchmarks.labels.mode_runs import (
    MODES,
    READINGS,
    VERSION,
    DecisionRow,
    ModeRun,
    every_run,
    run_one,
)
from training.reporting.markdown import markdown_table
from training.reporting.marked_part import put
from training.reporting.result_file import write_result
from training.reporting.run_file import Key, RunFile

FILE = "modes_runs.jsonl"
WAYS = tuple(f"{mode}, {reading}" for mode in MODES for reading in READINGS)
COLUMNS = (
    "measured by",
    "rank correlation with the loss",
    "with the divergence",
    "regret, nats of loss",
    "regret, nats of divergence",
    "accuracy when it routes, %",
)
NUMBERS = ("loss_correlation", "divergence_correlation", "loss_regret", "divergence_regret")
"""What a decision says of a way of measuring, in the order of the columns."""
CONTROLS = ("random", "l1", "rank_mean", "reconstruction", "reconstruction_fisher")
"""Arms whose networks stand beside the routed ones."""


def run(minutes: float | None, results: Path, jobs: int = 1) -> None:
    """Make the missing runs, print the table, write `modes.json`.

    Args:
        minutes: No run is begun later than this.
        results: Where runs and result file go.
        jobs: Processes.
    """
    calls: dict[Key, Callable[[], ModeRun]] = {
        (network, what, VERSION): partial(run_one, network, what) for network, what in every_run()
    }
    runs = RunFile(results / FILE, ModeRun.of).complete(calls, jobs=jobs, minutes=minutes)
    rows, summary = table_of(runs)
    print(text_table(COLUMNS, rows))
    print(text_table(["number", "value"], [[k, f"{v:.3f}"] for k, v in summary.items()]))
    print(write_result("modes", summary, result_rows(runs), results))


def result_rows(runs: Sequence[ModeRun]) -> list[dict[str, object]]:
    """A row for each network and way of measuring; every candidate is in the file of runs."""
    return [
        {"network": network, "measured_by": way, **{k: round(v, 4) for k, v in numbers.items()}}
        for way in WAYS
        for network, numbers in by_network(runs, way).items()
    ]


def update_page(page: Path, results: Path) -> None:
    """Put the table between the marks of a page."""
    rows, summary = table_of(list(RunFile(results / FILE, ModeRun.of).read().values()))
    text = (
        f"{summary['networks']:.0f} networks, {summary['decisions']:.0f} decisions; means over "
        "networks, +- their standard error.\n\n"
    )
    put(page, "modes", text + markdown_table(COLUMNS, rows))


def scores_of(decision: DecisionRow, way: str) -> dict[str, float]:
    """How one way ranks the candidates of a decision; NaN where all are alike."""
    measured, found = decision.measured[way], dict[str, float]()
    chosen = int(np.argmin(measured))
    for reading in READINGS:
        truth = decision.truth[reading]
        alike = len(set(measured)) < 2 or len(set(truth)) < 2
        correlation = float("nan") if alike else float(spearmanr(measured, truth).statistic)
        found[f"{reading}_correlation"] = correlation
        found[f"{reading}_regret"] = truth[chosen] - min(truth)
    return found


def by_network(runs: Iterable[ModeRun], way: str) -> dict[str, dict[str, float]]:
    """Network -> the means of its decisions' numbers."""
    rows: dict[str, list[dict[str, float]]] = {}
    for one in runs:
        for decision in one.decisions:
            if len(decision.arms) > 1:
                rows.setdefault(one.network, []).append(scores_of(decision, way))
    return {
        network: {number: float(np.nanmean([row[number] for row in some])) for number in NUMBERS}
        for network, some in rows.items()
    }


def routed_accuracies(runs: Sequence[ModeRun]) -> dict[str, list[float]]:
    """Way, or arm -> accuracies of the networks that every way has routed."""
    found: dict[str, dict[str, float]] = {}
    for one in runs:
        mode = one.what.removeprefix("routed by ")
        for name, value in one.routed.items():
            way = name if mode == "one arm" else f"{mode}, {name}"
            found.setdefault(way, {})[one.network] = value
    every = [set(found.get(way, {})) for way in (*WAYS, *CONTROLS)]
    networks = sorted(set.intersection(*every))
    return {way: [values[network] for network in networks] for way, values in found.items()}


def table_of(runs: Sequence[ModeRun]) -> tuple[list[list[str]], dict[str, float]]:
    """The printed rows, and the summary."""
    routed = routed_accuracies(runs)
    found = {way: by_network(runs, way) for way in WAYS}
    rows = [
        [
            way,
            *(spread([one[number] for one in found[way].values()]) for number in NUMBERS),
            spread([100 * value for value in routed[way]], 1),
        ]
        for way in WAYS
    ]
    rows += [
        [f"{arm} everywhere", "", "", "", "", spread([100 * v for v in routed[arm]], 1)]
        for arm in CONTROLS
        if arm in routed
    ]
    return rows, _summary(runs, found, routed)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard error, as text."""
    if not values:
        return "-"
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{mean(values):.{digits}f} +- {error:.{digits}f}"


def _summary(
    runs: Sequence[ModeRun],
    found: Mapping[str, Mapping[str, Mapping[str, float]]],
    routed: Mapping[str, Sequence[float]],
) -> dict[str, float]:
    summary: dict[str, float] = {
        "networks": len({one.network for one in runs if one.decisions}),
        "networks_with_batchnorm": len({o.network for o in runs if o.decisions and o.normalised}),
        "networks_routed": len(next(iter(routed.values()), [])),
        "decisions": sum(len(one.decisions) for one in runs),
        "candidates": sum(len(row.arms) for one in runs for row in one.decisions),
    }
    for way, networks in found.items():
        key = way.replace(", ", "_").replace(" ", "_")
        for number in NUMBERS if networks else ():
            values = [one[number] for one in networks.values()]
            summary[f"{key}_{number}"] = round(mean(values), 4)
    for way, accuracies in routed.items():
        if accuracies and (way in WAYS or way in CONTROLS):
            key = way.replace(", ", "_").replace(" ", "_")
            summary[f"{key}_routed_accuracy"] = round(mean(accuracies), 4)
    return summary
