"""`coverage` as it is shown: tables, failures, the result file, the part of the documents."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, get_args

from selector.errors import SelectorError
from selector.tables import text_table
from training.benchmarks.coverage.catalogue import every_subject, subject_named
from training.benchmarks.coverage.runs import FILE, CoverageRun, finished, run_missing
from training.benchmarks.coverage.trial import Outcome, Tool
from training.reporting.markdown import cell, markdown_table
from training.reporting.marked_part import put
from training.reporting.result_file import read_result, write_result

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
REACHED = ("resnet", "mobilenet", "efficientnet", "convnext", "swin", "vit", "yolo")
"""Families of which nine tenths of the MACs are to be within reach."""
SOURCES = ("torchvision", "timm", "third_party", "dense", "video", "written")
COUNT_COLUMNS = ("networks", "tool", "run", *OUTCOMES, "silent wrong", "largest gap")
FAILURE_COLUMNS = ("network", "outcome", "reach", "why")


def run(
    names: Sequence[str] | None,
    tools: Sequence[Tool],
    results: Path,
    *,
    minutes: float | None = None,
    again: Sequence[Outcome] = (),
) -> None:
    """Run the missing trials, then show all finished ones.

    Args:
        names: Networks, or sources (`timm`); None for all.
        tools: What prunes them.
        results: Where runs and result file go.
        minutes: No trial is begun later than this.
        again: Outcomes of other code that are run again.
    """
    subjects = every_subject()
    if names is not None:
        whole = [subject for subject in subjects.values() if subject.source in names]
        single = [subject_named(name) for name in names if name not in SOURCES]
        subjects = {subject.name: subject for subject in (*whole, *single)}
    run_missing(list(subjects.values()), tools, results / FILE, minutes=minutes, again=again)
    show(results)


T = TypeVar("T", bound=str)


def chosen(text: str, known: Sequence[T]) -> list[T]:
    """The words of a list with commas that are known.

    Raises:
        SelectorError: An unknown word.
    """
    words = [word for word in text.split(",") if word]
    for word in words:
        if word not in known:
            raise SelectorError(f"unknown {word!r}; known: {', '.join(known)}")
    return [word for word in known if word in words]


def show(results: Path) -> None:
    """Print what is there and write the result file."""
    runs = finished(results / FILE)
    rows = [asdict(one) for one in runs]
    print(text_table(list(COUNT_COLUMNS), counts_of(rows)))
    print(text_table(list(FAILURE_COLUMNS), failures_of(rows)))
    summary = summary_of(runs)
    print("\n".join(f"{key}: {value:g}" for key, value in summary.items()))
    print(write_result("coverage", summary, rows, results))


def summary_of(runs: Sequence[CoverageRun]) -> dict[str, float]:
    """The numbers that the documents quote, of what has been run.

    `pruned` means to half the MACs with every check passed; `crashes` and `silent_wrong` are those
    of this library over all networks; `macs_within_reach_min` is the least of the families in
    `REACHED`; `slowest_trace_s_cpu` is torchvision's slowest.
    """
    own = [one for one in runs if one.tool == "selector"]
    rival = [one for one in runs if one.tool == "torch-pruning"]
    reaches = [
        one.found.reach for one in own if one.family in REACHED and one.found.reach is not None
    ]
    times = [
        one.found.trace_seconds
        for one in own
        if one.source == "torchvision" and one.found.trace_seconds is not None
    ]
    return {
        "torchvision_pruned": _pruned(own, "torchvision"),
        "torchvision_run": sum(one.source == "torchvision" for one in own),
        "torchvision_pruned_torch_pruning": _pruned(rival, "torchvision"),
        "timm_pruned": _pruned(own, "timm"),
        "timm_run": sum(one.source == "timm" for one in own),
        "third_party_pruned": _pruned(own, "third_party"),
        "crashes": sum(one.found.outcome == "crash" for one in own),
        "silent_wrong": sum(one.found.silent_wrong for one in own),
        "macs_within_reach_min": min(reaches, default=0.0),
        "slowest_trace_s_cpu": max(times, default=0.0),
    }


def _pruned(runs: Sequence[CoverageRun], source: str) -> int:
    return sum(one.source == source and one.found.outcome == "pruned" for one in runs)


def counts_of(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Outcomes by source and tool; the largest gap of masked and cut among those pruned."""
    table = []
    for source in SOURCES:
        for tool in get_args(Tool):
            some = [row for row in rows if (row["source"], row["tool"]) == (source, tool)]
            if not some:
                continue
            outcomes = Counter(row["found"]["outcome"] for row in some)
            done = [row["found"] for row in some if row["found"]["outcome"] in ("pruned", "partly")]
            gaps = [found["gap"] for found in done if found["precision"] == "float64"]
            wrong = sum(row["found"]["silent_wrong"] for row in some)
            counts = [str(outcomes[outcome]) for outcome in OUTCOMES]
            gap = cell(max(gaps, default=None), ".1g")
            table.append([source, tool, str(len(some)), *counts, str(wrong), gap])
    return table


def failures_of(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """This library's networks that are not pruned to the target, with the reason."""
    return [
        [
            row["network"],
            row["found"]["outcome"],
            "-" if row["found"]["reach"] is None else f"{row['found']['reach']:.0%}",
            row["found"]["reason"].replace("|", "/"),
        ]
        for row in rows
        if row["tool"] == "selector" and row["found"]["outcome"] != "pruned"
    ]


def update_page(page: Path, results: Path) -> None:
    """Put the counts and the failures of the result file between the marks of the document.

    Raises:
        SelectorError: No result file, or no marks.
    """
    rows = read_result("coverage", "benchmark-coverage", results)["rows"]
    counts = markdown_table(COUNT_COLUMNS, counts_of(rows))
    failures = failures_of(rows)
    words = "The selector prunes all of these networks to half their MACs."
    if failures:
        table = markdown_table(FAILURE_COLUMNS, failures)
        words = f"Not pruned to half the MACs:\n\n{table}"
    put(page, "coverage", f"{counts}\n\n{words}")
