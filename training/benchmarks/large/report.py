"""`large` as it is shown: the table, the result file, the table of the documents."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from selector.tables import text_table
from training.benchmarks.large.network import CALIBRATION_IMAGES, TEST_IMAGES
from training.benchmarks.large.runs import (
    FILE,
    L1,
    NAMES,
    RECONSTRUCTION_FISHER,
    TARGETS,
    TORCH_PRUNING,
    LargeRun,
    finished,
    run_missing,
)
from training.benchmarks.networks.methods import DEFAULT, RANK_MEAN, SELECTOR, always
from training.reporting.markdown import markdown_table, percent_text
from training.reporting.marked_part import put
from training.reporting.result_file import read_result, write_result

KEYS: Mapping[str, str] = {
    SELECTOR: "",
    DEFAULT: "default_",
    L1: "l1_",
    TORCH_PRUNING: "torch_pruning_",
    RECONSTRUCTION_FISHER: "reconstruction_fisher_",
    always("taylor"): "taylor_",
    RANK_MEAN: "rank_mean_",
}
"""Method -> how its keys of the summary begin."""
BRIEFLY: Mapping[str, str] = {
    DEFAULT: "`prune`",
    TORCH_PRUNING: "Torch-Pruning's Taylor",
    L1: "L1",
}
"""Method -> as the README names it."""
COLUMNS = (
    "method",
    *(f"{target:.0%} MACs{end}" for target in TARGETS for end in ("", ", repaired")),
    "seconds",
    "repair, seconds",
)


def run(methods: Sequence[str] | None, minutes: float | None, results: Path) -> None:
    """Make the missing runs, then show all finished ones.

    Args:
        methods: Some of `NAMES`; None for all.
        minutes: No run is begun later than this.
        results: Where runs and result file go.
    """
    run_missing(NAMES if methods is None else methods, results / FILE, minutes)
    runs = finished(results / FILE)
    summary = summary_of(runs)
    print(text_table(COLUMNS, table_of(runs)))
    for one in runs:
        if one.failed is not None:
            print(f"{one.method}, {one.target:.0%}: {one.failed}")
    print("\n".join(f"{key}: {value:g}" for key, value in summary.items()))
    print(write_result("large", summary, [asdict(one) for one in runs], results))


def summary_of(runs: Sequence[LargeRun]) -> dict[str, float]:
    """The numbers that the documents quote; what was not measured is absent.

    `drop_at_80` are the points of accuracy that the selector loses at 80 % of the MACs, repaired;
    `drop_at_80_unrepaired` before the repair. Keys of other methods begin with their names; those
    of `default_` are what `prune` does by default, with widths that are measured here.
    `seconds_over_torch_pruning` compares the CPU time of all cuts, without repair, down to
    `seconds_compared_at` percent of the MACs, the least that both reached;
    `seconds_over_torch_pruning_repaired` adds one repair to each.
    """
    summary: dict[str, float] = {"methods": len({one.method for one in runs})}
    done = {(one.method, one.target): one for one in runs if one.failed is None}
    for (method, target), one in done.items():
        summary["unpruned"] = _known(one.unpruned)
        name = f"{KEYS[method]}drop_at_{100 * target:.0f}"
        for end, left in (("", one.repaired), ("_unrepaired", one.pruned)):
            summary[name + end] = round(100 * (_known(one.unpruned) - _known(left)), 2)
    both = [t for t in TARGETS if (SELECTOR, t) in done and (TORCH_PRUNING, t) in done]
    if both:
        ours, theirs = (done[method, min(both)] for method in (SELECTOR, TORCH_PRUNING))
        ways = [(one.seconds, one.seconds + one.repair_seconds) for one in (ours, theirs)]
        summary["seconds_compared_at"] = round(100 * min(both))
        for number, end in enumerate(("", "_repaired")):
            ratio = ways[0][number] / ways[1][number]
            summary[f"seconds_over_torch_pruning{end}"] = round(ratio, 3)
    return summary


def table_of(runs: Sequence[LargeRun]) -> list[list[str]]:
    """A line for each method: accuracies in percent, CPU seconds of all cuts and of one repair."""
    rows = []
    for method in dict.fromkeys(one.method for one in runs):
        some = {one.target: one for one in runs if one.method == method}
        cells = []
        for target in TARGETS:
            one = some.get(target)
            shares = (None, None) if one is None else (one.pruned, one.repaired)
            cells += [percent_text(share) for share in shares]
        repairs = [one.repair_seconds for one in some.values() if one.repair_seconds]
        mean = f"{sum(repairs) / len(repairs):.0f}" if repairs else "-"
        whole = some.get(TARGETS[-1])
        seconds = "-" if whole is None or whole.failed else f"{whole.seconds:.0f}"
        rows.append([method, *cells, seconds, mean])
    return rows


def update_page(page: Path, results: Path) -> None:
    """Put the table of the result file between the marks of a page.

    Raises:
        SelectorError: No result file, or no marks.
    """
    rows = read_result("large", "benchmark-large", results)["rows"]
    put(page, "large", said([LargeRun.of(row) for row in rows]))


def update_readme(readme: Path, results: Path) -> None:
    """Put what the product and its rivals keep between the marks of the README.

    Raises:
        SelectorError: No result file, or no marks.
    """
    rows = read_result("large", "benchmark-large", results)["rows"]
    put(readme, "large", said_briefly([LargeRun.of(row) for row in rows]))


def said_briefly(runs: Sequence[LargeRun]) -> str:
    """What is left at every share of the MACs to which the product has pruned as by default."""
    done = {(one.method, one.target): one for one in runs if one.failed is None}
    parts = [
        f"at {target:.0%} of the MACs "
        + ", ".join(
            f"{words} {percent_text(done[method, target].repaired)}"
            for method, words in BRIEFLY.items()
            if (method, target) in done
        )
        for target in TARGETS
        if (DEFAULT, target) in done
    ]
    whole = percent_text(runs[0].unpruned) if runs else "-"
    return f"- Top-1 in percent, {whole} unpruned: {'; '.join(parts)}."


def said(runs: Sequence[LargeRun]) -> str:
    """What the page says of the runs that are there: a sentence, and the table."""
    if not runs:
        return "Nothing has been run yet."
    missing = [name for name in NAMES if all(one.method != name for one in runs)]
    absent = f" Not run yet: {', '.join(missing)}." if missing else ""
    lines = (
        f"Accuracy in percent on {TEST_IMAGES} images; unpruned "
        f"{100 * _known(runs[0].unpruned):.1f}; {CALIBRATION_IMAGES} images to calibrate.{absent}"
    )
    return "\n\n".join([lines, markdown_table(COLUMNS, table_of(runs)), *_sentences(runs)])


def _sentences(runs: Sequence[LargeRun]) -> list[str]:
    """What repaired networks lose, and the time; nothing where there is nothing to say."""
    summary = summary_of(runs)
    lost = {
        target: [
            f"{method} {summary[key]:.1f}"
            for method, name in KEYS.items()
            if (key := f"{name}drop_at_{100 * target:.0f}") in summary
        ]
        for target in TARGETS
    }
    lines = [
        f"- Points lost at {target:.0%} of the MACs, repaired: {', '.join(some)}."
        for target, some in lost.items()
        if some
    ]
    if "seconds_compared_at" in summary:
        ratios = [summary[f"seconds_over_torch_pruning{end}"] for end in ("", "_repaired")]
        lines.append(
            f"- Down to {summary['seconds_compared_at']:.0f}% of the MACs, the selector's cuts "
            f"take {ratios[0]:.1f} times the CPU time of Torch-Pruning's; with one repair each, "
            f"{ratios[1]:.1f} times."
        )
    return ["\n".join(lines)] if lines else []


def _known(share: float | None) -> float:
    assert share is not None, "a run that did not fail has all of its accuracies"
    return share
