"""What do all first-order metrics cost, over one plain forward and backward pass?

torchvision's ResNet-50 at 224 pixels, batches of 16, and a CIFAR ResNet-56, batches of 128: time
and peak memory of scoring every group under every metric that one pass gives (the table's and the
grammar's, at both measuring points), over a plain forward and backward pass of the same batches.
ViT-B/16 and ConvNeXt-T, too, in batches of 8. `pass_ratio` is the pass that measures, alone: what
the metrics make of it takes the same time for any number of images.
For comparison: Torch-Pruning's own importances (magnitude, BatchNorm, FPGM, Taylor, Hessian) of all
groups on one batch. And the pairwise metrics on vgg16_bn's 512-wide layers. Seconds are those of
the processor in one thread: what other programs take does not count.
"""

from collections.abc import Iterator, Mapping
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor

from selector.network.tracing import find_groups
from selector.saliency.grammar import systematic_names
from selector.saliency.registry import METRICS
from selector.tables import text_table
from training.benchmarks.common.peak_memory import in_own_process, peak_mib
from training.benchmarks.speed.scoring_cases import (
    CASES,
    METRICS_OF_ONE_PASS,
    plain_pass,
    scored,
    set_up,
)
from training.benchmarks.speed.scoring_time import pairwise_seconds, seconds_of
from training.reporting.markdown import cell, markdown_table
from training.reporting.marked_part import put
from training.reporting.result_file import RESULTS, read_result, write_result

NAME = "saliency"
REPEATS = 5
COLUMNS = (
    "network",
    "the pass",
    "with all metrics",
    "peak memory",
    "Torch-Pruning's five importances, ours over theirs",
)


def run(repeats: int = REPEATS) -> None:
    """Measure time and memory, print the tables, write `results/saliency.json`."""
    torch.set_num_threads(1)
    rows: list[Mapping[str, object]] = []
    summary: dict[str, float] = {
        "metrics": len(METRICS) + len(list(systematic_names())),
        "metrics_named": len(METRICS),
        "metrics_in_one_pass": len(METRICS_OF_ONE_PASS),
    }
    for case in CASES.values():
        found = seconds_of(case, repeats)
        memory = {what: _peak(case.name, what, case.batches) for what in ("plain", "ours")}
        long = _peak(case.name, "ours", 64) if case.name == "resnet56" else None
        few = _peak(case.name, "ours", 4) if long else None
        summary |= {
            f"{case.name}_time_ratio": found["ratio"],
            f"{case.name}_pass_ratio": found["pass_ratio"],
            f"{case.name}_memory_ratio": memory["ours"] / memory["plain"],
        }
        if case.theirs:
            summary[f"{case.name}_torch_pruning_time_ratio"] = found["over_torch_pruning"]
            summary[f"{case.name}_torch_pruning_no_hessian_time_ratio"] = found["over_no_hessian"]
        if long and few:
            summary["memory_64_over_4_batches"] = long / few
        rows.append({"network": case.name, **found, "plain_mib": memory["plain"], **_ours(memory)})
    summary["memory_ratio"] = max(summary[f"{name}_memory_ratio"] for name in CASES)
    summary["torch_pruning_time_ratio"] = max(
        summary[f"{name}_torch_pruning_time_ratio"] for name, case in CASES.items() if case.theirs
    )
    summary |= pairwise_seconds()
    summary = {name: round(value, 4) for name, value in summary.items()}
    names = ["", *(str(row["network"]) for row in rows)]
    print(
        text_table(
            names, [[key, *(cell(row.get(key, "-"), ".3g") for row in rows)] for key in rows[0]]
        )
    )
    print(text_table(["number", "value"], [[k, cell(v, ".3g")] for k, v in summary.items()]))
    print(write_result(NAME, summary, rows))


def update_page(page: Path, results: Path = RESULTS) -> None:
    """Put what the result file says between the marks of the document.

    Raises:
        SelectorError: No result file, or no marks.
    """
    found = read_result(NAME, f"benchmark-{NAME}", results)
    summary, rows = found["summary"], {row["network"]: row for row in found["rows"]}
    lines = []
    for name, case in CASES.items():
        row = rows[name]
        theirs = "-"
        if case.theirs:
            theirs = (
                f"{row['over_torch_pruning']:.2f} x in time (without its Hessian: "
                f"{row['over_no_hessian']:.2f} x)"
            )
        ratios = (f"{row[key]:.2f} x" for key in ("pass_ratio", "ratio", "memory_ratio"))
        lines.append([case.words, *ratios, theirs])
    narrow, wide = (summary[f"vgg16_bn_{width}_wide_pairwise_seconds"] for width in (512, 4096))
    words = (
        f"Peak memory with 64 batches is {summary['memory_64_over_4_batches']:.2f} times that with "
        f"4. FPGM and WHC compare all filters in pairs: they take {narrow:.2f} s for vgg16_bn's "
        f"layers of 512 filters, and {wide:.0f} s for its classifier of 4,096 filters with 25,088 "
        "weights each."
    )
    put(page, NAME, f"{markdown_table(COLUMNS, lines)}\n\n{words}")


def _ours(memory: Mapping[str, float]) -> dict[str, float]:
    return {"our_mib": memory["ours"], "memory_ratio": memory["ours"] / memory["plain"]}


def _peak(case: str, what: str, batches: int) -> float:
    """Peak memory of one pass over so many batches, in a process of its own, MiB."""
    return in_own_process(_peak_here, case, what, batches)


def _peak_here(case: str, what: str, batches: int) -> float:
    torch.set_num_threads(1)
    model, data = set_up(CASES[case], 1)
    groups = find_groups(model, data[0][0][:1]).required()
    plain_pass(model, [(images[:1], labels[:1]) for images, labels in data])
    repeated = _Repeated(data[0], batches)
    if what == "plain":
        return peak_mib(lambda: plain_pass(model, repeated))
    return peak_mib(lambda: scored(model, repeated, groups))


class _Repeated:
    """The same batch, read many times: data that take no memory of their own."""

    def __init__(self, batch: tuple[Tensor, Tensor], batches: int) -> None:
        self._batch, self._batches = batch, batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return repeat(self._batch, self._batches)
