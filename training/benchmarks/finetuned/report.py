"""`finetuned` as it is shown: tables, the result file, the part of the documents."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import mean, median

from selector.tables import text_table
from training.benchmarks.common.differences import difference_of, differences_in_words
from training.benchmarks.common.subjects import find_subjects
from training.benchmarks.finetuned.runs import (
    CUTS,
    EPOCHS,
    FILE,
    IMAGES,
    METHODS,
    NETWORKS,
    PRUNED,
    REPAIRED,
    SCRATCH,
    FinetunedRun,
    run_missing,
)
from training.benchmarks.networks.methods import RANK_MEAN, SELECTOR, always
from training.benchmarks.networks.pruning_task import Folders, tasks_for
from training.reporting.markdown import in_list, markdown_table, percent_text
from training.reporting.marked_part import put
from training.reporting.result_file import read_result, write_result

COLUMNS = (
    "method",
    "start",
    "before",
    *(f"{e} short {'epoch' if e == 1 else 'epochs'}" for e in EPOCHS),
)
RIVALS = {always("l1"): "l1", RANK_MEAN: "rank_mean", METHODS[-1]: "torch_pruning"}
"""Method -> its name in the summary."""
LAST = EPOCHS[-1]

State = tuple[str, str, int]
"""Method, what its network is before training, and short epochs of training."""
Case = tuple[str, int, float]
"""Network, draw and share of the MACs."""


def run(folders: Folders, jobs: int, minutes: float | None, results: Path) -> None:
    """Make the missing runs, then show all finished ones.

    Args:
        folders: Where records and weights lie.
        jobs: Processes.
        minutes: No run is begun later than this.
        results: Where runs and result file go.
    """
    subjects = find_subjects(folders.data, NETWORKS)
    tasks = [task for cut in CUTS for task in tasks_for(subjects, METHODS, cut, folders)]
    runs = run_missing(tasks, results / FILE, jobs, minutes)
    for keep in _shares(runs):
        print(f"\n{keep:.0%} of the MACs\n" + text_table(COLUMNS, rows_of(runs, keep)))
    summary = summary_of(runs)
    print("\n".join(f"{key}: {value:g}" for key, value in summary.items()))
    print(write_result("finetuned", summary, [asdict(one) for one in runs], results))


def update_page(page: Path, results: Path) -> None:
    """Put tables and sentences between the marks of a page.

    Raises:
        SelectorError: No result file, or no marks.
    """
    rows = read_result("finetuned", "benchmark-finetuned", results)["rows"]
    runs = [FinetunedRun.of(row) for row in rows]
    tables = [
        f"At {keep:.0%} of the MACs{_over(runs, keep)}:\n\n"
        f"{markdown_table(COLUMNS, rows_of(runs, keep))}"
        for keep in _shares(runs)
    ]
    words = in_list(sentences(summary_of(runs)))
    put(page, "finetuned", "\n\n".join([*tables, words]).strip())


def _over(runs: Sequence[FinetunedRun], keep: float) -> str:
    """Which networks the means are over, and why others are left out."""
    names = dict.fromkeys(one.network for one in complete(runs, keep))
    failed = [
        f"{one.network}, since {one.failed}"
        for one in runs
        if one.failed is not None and one.keep_macs == keep and not one.draw
    ]
    out = f"; left out: {'; '.join(failed)}" if failed else ""
    return f" ({', '.join(names)}{out})"


def _shares(runs: Sequence[FinetunedRun]) -> list[float]:
    return sorted({one.keep_macs for one in runs}, reverse=True)


def rows_of(runs: Sequence[FinetunedRun], keep: float) -> list[list[str]]:
    """Mean accuracies in percent over the networks and draws that every method was run with."""
    whole = complete(runs, keep)
    rows = []
    for method, start in product(METHODS, (PRUNED, REPAIRED, SCRATCH)):
        some = [one for one in whole if one.method == method and start in one.before]
        if some:
            shares = [mean(one.before[start] for one in some)]
            shares += [mean(one.after[start][str(e)] for one in some) for e in EPOCHS]
            rows.append([method, start, *map(percent_text, shares)])
    return rows


def complete(runs: Sequence[FinetunedRun], keep: float) -> list[FinetunedRun]:
    """The runs at a share of the MACs, of networks and draws that every method got through."""
    some = [one for one in runs if one.keep_macs == keep and one.failed is None]
    methods: dict[tuple[str, int], set[str]] = {}
    for one in some:
        methods.setdefault((one.network, one.draw), set()).add(one.method)
    return [one for one in some if methods[one.network, one.draw] == set(METHODS)]


def summary_of(runs: Sequence[FinetunedRun]) -> dict[str, float]:
    """The numbers that the documents quote; what was not measured is absent.

    Differences are in points of accuracy, first averaged over a network's draws and shares of the
    MACs that both sides were run with, then over networks. `selector_over_X_N_epochs` compares
    repaired networks after N short epochs; `selector_over_scratch` the repaired one with random
    weights after ten of them; `repair_points_...` the selector's repaired networks with its
    unrepaired ones; `repair_over_training` its repaired networks, not trained, with unrepaired ones
    after the longest training.
    """
    whole = [one for one in runs if one.failed is None]
    asked = [one for one in whole if one.method == SELECTOR]
    if not asked:
        return {}
    draws = Counter(network for network, _ in {(one.network, one.draw) for one in asked})
    summary: dict[str, float] = {"networks": len(draws), "draws": min(draws.values())}
    for epochs in (0, *EPOCHS):
        ours = (SELECTOR, REPAIRED, epochs)
        for method, name in RIVALS.items():
            points = _points(whole, ours, (method, REPAIRED, epochs))
            summary |= difference_of(points, f"selector_over_{name}_{_epochs(epochs)}")
        points = _points(whole, ours, (SELECTOR, PRUNED, epochs))
        summary |= difference_of(points, f"repair_points_{_epochs(epochs)}")
    trained = (SELECTOR, REPAIRED, LAST)
    points = _points(whole, trained, (SELECTOR, SCRATCH, LAST))
    summary |= difference_of(points, "selector_over_scratch")
    points = _points(whole, (SELECTOR, REPAIRED, 0), (SELECTOR, PRUNED, LAST))
    summary |= difference_of(points, "repair_over_training")
    caught = [one for one in asked if one.images_for_repair is not None]
    summary["repairs_asked"], summary["repairs_reached"] = len(asked), len(caught)
    if caught:
        summary["images_for_one_repair_median"] = median(
            one.images_for_repair or 0 for one in caught
        )
        ratios = [(one.seconds_for_repair or 0) / one.repair_seconds for one in caught]
        summary["training_over_repair_seconds_median"] = round(median(ratios), 2)
    return summary


def _epochs(count: int) -> str:
    return f"{count}_epoch" if count == 1 else f"{count}_epochs"


def _points(runs: Sequence[FinetunedRun], one: State, other: State) -> list[float]:
    """Points by which one state is ahead of another, network by network."""
    found: dict[str, list[float]] = {}
    levels = [_levels(runs, state) for state in (one, other)]
    for case in levels[0].keys() & levels[1].keys():
        found.setdefault(case[0], []).append(100 * (levels[0][case] - levels[1][case]))
    return [mean(points) for points in found.values()]


def _levels(runs: Sequence[FinetunedRun], state: State) -> dict[Case, float]:
    """Accuracies in a state."""
    method, kind, epochs = state
    return {
        (run.network, run.draw, run.keep_macs): (
            run.after[kind][str(epochs)] if epochs else run.before[kind]
        )
        for run in runs
        if run.method == method
    }


def sentences(summary: Mapping[str, float]) -> list[str]:
    """What the runs say, in words."""
    if not summary:
        return []
    when = {0: "before any training"}
    when |= {epochs: f"after training for {epochs * IMAGES:,} images" for epochs in EPOCHS}
    words = {f"repair_points_{_epochs(e)}": f"Repair, {text}" for e, text in when.items()}
    for method, name in RIVALS.items():
        lead = f"The selector over {method}, both repaired"
        words |= {
            f"selector_over_{name}_{_epochs(e)}": f"{lead}, {text}" for e, text in when.items()
        }
    words["repair_over_training"] = (
        f"Repair alone, without labels, over training the unrepaired network for {LAST * IMAGES:,} "
        "labelled images"
    )
    words["selector_over_scratch"] = (
        f"The selector's repaired network over the same architecture with random weights, both "
        f"trained for {LAST * IMAGES:,} images"
    )
    found = differences_in_words(summary, words)
    if "images_for_one_repair_median" in summary:
        found.append(
            f"Training alone reached the accuracy of the repaired network in "
            f"{summary['repairs_reached']:.0f} of {summary['repairs_asked']:.0f} cases; there it "
            f"took {summary['images_for_one_repair_median']:,.0f} labelled images in the median, "
            f"and {summary['training_over_repair_seconds_median']:.1f} times the repair's time."
        )
    return found
