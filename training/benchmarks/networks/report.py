"""`networks` as it is shown: tables, the result file, plots, the tables of the documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from training.benchmarks.common.differences import differences_in_words
from training.benchmarks.common.subjects import ThirdParty, find_subjects
from training.benchmarks.networks import third_party
from training.benchmarks.networks.methods import (
    METHODS,
    MYOPIC,
    PORTFOLIO,
    RANDOM,
    RECONSTRUCTING,
    SELECTOR,
    VERIFY3,
    always,
)
from training.benchmarks.networks.pruning_task import (
    Folders,
    RunSettings,
    default_methods,
    tasks_for,
)
from training.benchmarks.networks.runs import FILE, CurveRun, finished, run_missing
from training.benchmarks.networks.tables import (
    BEST_RIVAL,
    BEST_SINGLE,
    REPAIRED,
    SBS,
    Table,
    means_of,
    printed,
    rows_of,
    summary_of,
)
from training.benchmarks.speed import resnet50 as resnet50_cost
from training.reporting.markdown import in_list, markdown_table, percent_text
from training.reporting.marked_part import put
from training.reporting.result_file import read_result, write_result
from training.reporting.run_file import RunFile
from training.zoo.shared_third_party import third_party_info

mpl.use("Agg")

PLOTTED = (RANDOM, always("l1"), always("reconstruction"), BEST_RIVAL, RECONSTRUCTING, SELECTOR)
HEADLINE = (
    VERIFY3,
    SELECTOR,
    "torch-pruning l1 global",
    "torch-pruning taylor global",
    "reconstruction, the selector's shares",
    "rank_mean, the selector's shares",
    RECONSTRUCTING,
    BEST_RIVAL,
    MYOPIC,
    PORTFOLIO,
    BEST_SINGLE,
    SBS,
    always("l1"),
    RANDOM,
)
"""Rows of the README's table."""


@dataclass(frozen=True)
class Wanted:
    """What is to be run now."""

    networks: Sequence[str] | None = None
    """Names; None for all."""
    methods: Sequence[str] | None = None
    """Some of `METHODS`; None for those that are run by default."""
    jobs: int = 2
    """Processes."""
    minutes: float | None = None
    """No run is begun later than this."""


def run(wanted: Wanted, settings: RunSettings, folders: Folders, results: Path) -> None:
    """Run the missing curves, then show all finished ones.

    Args:
        wanted: What to run.
        settings: What is the same for all.
        folders: Where records and weights lie.
        results: Where runs, result file and plots go.
    """
    methods = default_methods() if wanted.methods is None else wanted.methods
    tasks = tasks_for(find_subjects(folders.data, wanted.networks), methods, settings, folders)
    run_missing(tasks, results / FILE, wanted.jobs, wanted.minutes)
    show(settings, folders, results)


def show(settings: RunSettings, folders: Folders, results: Path) -> None:
    """Print the tables of all runs that are there, write the result file and the plots."""
    file = RunFile(results / FILE, CurveRun.of)
    begun = {run.network for run in file.read().values()}
    subjects = [s for s in find_subjects(folders.data) if s.name in begun]
    every = tasks_for(subjects, list(METHODS), settings, folders)
    done = finished(every, file.path)
    kept = {s.name: third_party_info(s.name).dataset for s in subjects if isinstance(s, ThirdParty)}
    strangers = third_party.rows_of([run for run in done if run.network in kept], kept)
    runs = [run for run in done if run.network not in kept]
    table = rows_of(runs, {task.subject.name: task.learnt.single_best for task in every})
    for network in dict.fromkeys(network for network, _ in table):
        print(f"\n{network}\n" + printed([r for (name, _), r in table.items() if name == network]))
    means = means_of(table)
    if means:
        print(f"\nmean over {means[0].note}\n" + printed(means))
    if strangers:
        print("\nthird-party networks\n" + third_party.printed(strangers))
    summary = (summary_of(table) if table else {}) | resnet50_cost.ratio(results)
    summary |= third_party.summary_of(strangers)
    summary |= third_party.imagenet_summary(results)
    print("\n".join(["", *(f"{key}: {value:g}" for key, value in summary.items())]))
    rows = [row.flat for row in [*table.values(), *means]]
    rows += strangers
    print(write_result("networks", summary, rows, results))
    if runs:
        print(plot(runs, table, results / "networks.png"))


def update_pages(page: Path, readme: Path, results: Path) -> None:
    """Put the means of the result file between the marks of two documents.

    Args:
        page: Takes the means of all methods.
        readme: Takes those of `HEADLINE`.
        results: Folder of the result file.

    Raises:
        SelectorError: No result file, or no marks.
    """
    found = read_result("networks", "benchmark-networks", results)
    rows = [row for row in found["rows"] if row["network"] == "mean"]
    put(page, "networks", markdown(rows))
    shown = {name + end for name in HEADLINE for end in ("", REPAIRED)}
    put(readme, "headline", markdown([row for row in rows if row["method"] in shown]))
    said = in_list(differences_in_words(found["summary"], GAINS))
    strangers = [row for row in found["rows"] if row.get("part") == "third_party"]
    gains = in_list(differences_in_words(found["summary"], third_party.WORDS))
    for document in (page, readme):
        put(document, "gains", said)
        if strangers:
            put(document, "third-party", f"{third_party.markdown(strangers)}\n\n{gains}".strip())


GAINS = {
    "repair_points": "Repair, for the selector",
    "widths_points": "The selector's widths over even ones, `reconstruction_fisher` choosing "
    "channels",
    "routing_over_reconstruction_fisher_points": "Routing over `reconstruction_fisher` everywhere, "
    "at the selector's widths",
    "allocation_points": "The selector's widths over even ones, the selector choosing channels",
    "selector_over_reconstruction_fisher_points": "The selector over `reconstruction_fisher` with "
    "even widths",
    "selector_over_l1_points": "The selector over L1 with even widths",
    "selector_over_torch_pruning_l1_points": "The selector over Torch-Pruning's global L1 pruner",
    "selector_over_reconstructing_rival_points": "The selector over the lasso and least squares "
    "(arXiv 1707.06168)",
}
"""Differences in the documents, everything repaired but what repair itself is compared with."""

SHOWN = {"auc": "area 90-30%", "accuracy_50": "50% MACs", "accuracy_30": "30% MACs"}
"""Columns of the documents, each with and without repair where there are repaired networks."""


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the result file as a Markdown table, repaired networks beside unrepaired ones.

    Shares in percent, images in thousands; the largest area after repair comes first.
    """
    known = {row["method"]: row for row in rows}
    plain = [row for row in rows if not row["method"].endswith(REPAIRED)]

    def repaired(row: Mapping[str, Any]) -> Mapping[str, Any]:
        return known.get(row["method"] + REPAIRED, {})

    both = any(row["method"].endswith(REPAIRED) for row in rows)
    lines = []
    for row in sorted(plain, key=lambda one: -(repaired(one).get("auc") or one["auc"] or 0)):
        states = (row, repaired(row)) if both else (row,)
        shares = [state.get(column) for column in SHOWN for state in states]
        percent = [percent_text(share) for share in shares]
        cost = [f"{(row['oracle_forwards'] or 0) / 1000:.0f} k", f"{row['seconds']:.0f}"]
        cost.append(str(row["draws"]))
        lines.append([row["method"], *percent, *cost])
    ends = ("", REPAIRED) if both else ("",)
    titles = [title + end for title in SHOWN.values() for end in ends]
    return markdown_table(["method", *titles, "oracle images", "seconds", "draws"], lines)


def plot(runs: Sequence[CurveRun], table: Table, path: Path) -> Path:
    """Accuracy after repair over MACs kept, one panel a network, few methods, the first draw."""
    curves = {(run.network, run.method): run.repaired for run in runs if not run.draw}
    networks = list(dict.fromkeys(run.network for run in runs))
    across = min(4, len(networks))
    down = -(-len(networks) // across)
    figure, axes = plt.subplots(down, across, figsize=(4 * across, 3 * down), squeeze=False)
    for panel in axes.flat[len(networks) :]:
        panel.set_visible(False)
    for panel, network in zip(axes.flat, networks, strict=False):
        for number, method in enumerate(PLOTTED):
            row = table.get((network, method))
            curve = curves.get((network, row.note if row and row.note in METHODS else method))
            if curve:
                bold = 2.2 if method in (SELECTOR, VERIFY3) else 1.0
                macs, accuracies = zip(*[(p.macs_kept, p.accuracy) for p in curve], strict=True)
                panel.plot(
                    100 * np.array(macs),
                    100 * np.array(accuracies),
                    label=method,
                    color=f"C{number}",
                    linewidth=bold,
                )
        panel.invert_xaxis()
        panel.set_title(network, fontsize=8)
    axes[-1, 0].set_xlabel("% of MACs kept")
    axes[-1, 0].set_ylabel("top-1, %")
    axes[0, 0].legend(fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return path
