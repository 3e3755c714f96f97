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

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch_pruning as tp
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from selector.network.groups import Group
from selector.network.tracing import find_groups
from selector.saliency.grammar import need_of, systematic_names
from selector.saliency.registry import METRICS, first_order_metrics
from selector.saliency.scoring import score_signals
from selector.statistics.collect import measure_signals
from selector.statistics.statistic import FIRST_ORDER
from selector.tables import text_table
from training.reporting.markdown import cell, markdown_table
from training.reporting.marked_part import put
from training.reporting.result_file import RESULTS, read_result, write_result
from training.zoo.third_party_networks import HeResNet

NAME = "saliency"
REPEATS = 5
T = TypeVar("T")
Data = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class SaliencyCase:
    """A network and the shape of its batches; weights are random, since only time is judged."""

    name: str
    build: Callable[[], nn.Module]
    batch: int
    batches: int
    pixels: int = 224
    classes: int = 1000
    words: str
    """What it is called in the document."""
    theirs: bool = True
    """Whether Torch-Pruning's importances are timed beside ours."""


CASES = {
    case.name: case
    for case in (
        SaliencyCase(
            name="resnet50",
            build=torchvision.models.resnet50,
            batch=16,
            batches=4,
            words="torchvision ResNet-50, 224 px, batch 16",
        ),
        SaliencyCase(
            name="resnet56",
            build=lambda: HeResNet(56),
            batch=128,
            batches=4,
            pixels=32,
            classes=10,
            words="CIFAR ResNet-56, batch 128",
        ),
        SaliencyCase(
            name="vit_b_16",
            build=torchvision.models.vit_b_16,
            batch=8,
            batches=2,
            words="torchvision ViT-B/16, 224 px, batch 8",
            theirs=False,
        ),
        SaliencyCase(
            name="convnext_tiny",
            build=torchvision.models.convnext_tiny,
            batch=8,
            batches=4,
            words="torchvision ConvNeXt-T, 224 px, batch 8",
            theirs=False,
        ),
    )
}
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
        found = _time(case, repeats)
        memory = {what: _peak_mib(case.name, what, case.batches) for what in ("plain", "ours")}
        long = _peak_mib(case.name, "ours", 64) if case.name == "resnet56" else None
        few = _peak_mib(case.name, "ours", 4) if long else None
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
    summary |= _pairwise_seconds()
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


METRICS_OF_ONE_PASS = [
    *first_order_metrics(),
    *(name for name in systematic_names() if need_of(name) in FIRST_ORDER),
]


def _ours(memory: Mapping[str, float]) -> dict[str, float]:
    return {"our_mib": memory["ours"], "memory_ratio": memory["ours"] / memory["plain"]}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _set_up(case: SaliencyCase, batches: int) -> tuple[nn.Module, Data]:
    torch.manual_seed(0)
    device = _device()
    model = case.build().eval().to(device)
    shape = (case.batch, 3, case.pixels, case.pixels)
    data = [
        (torch.randn(shape, device=device), torch.randint(case.classes, (case.batch,)).to(device))
        for _ in range(batches)
    ]
    return model, data


def _plain(model: nn.Module, data: Data) -> None:
    for images, labels in data:
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(functional.cross_entropy(model(images), labels))
    model.zero_grad(set_to_none=True)


def _scored(model: nn.Module, data: Data, groups: Mapping[str, Group]) -> None:
    score_signals(measure_signals(model, data, groups), METRICS_OF_ONE_PASS)


def _time(case: SaliencyCase, repeats: int) -> dict[str, float]:
    model, data = _set_up(case, case.batches)
    seconds, groups = _timed(lambda: find_groups(model, data[0][0][:2]).required())
    parts: dict[str, Callable[[], object]] = {
        "plain": lambda: _plain(model, data),
        "pass": lambda: measure_signals(model, data, groups),
        "ours": lambda: _scored(model, data, groups),
    }
    # In turns, so that a busy moment of the machine falls on all alike; the first turn warms up.
    turns = [{name: _timed(part)[0] for name, part in parts.items()} for _ in range(repeats + 1)]
    found = {name: statistics.median(turn[name] for turn in turns[1:]) for name in parts}
    measured = {
        "groups": len(groups),
        "trace_seconds": seconds,
        "plain_seconds": found["plain"],
        "pass_seconds": found["pass"],
        "our_seconds": found["ours"],
        "pass_ratio": statistics.median(turn["pass"] / turn["plain"] for turn in turns[1:]),
        "ratio": statistics.median(turn["ours"] / turn["plain"] for turn in turns[1:]),
    }
    return measured | (_over_torch_pruning(model, data[:1], groups) if case.theirs else {})


def _over_torch_pruning(
    model: nn.Module, batch: Data, groups: Mapping[str, Group]
) -> dict[str, float]:
    """Our seconds for one batch, and theirs."""
    theirs = _torch_pruning(model, batch)
    ours = statistics.median(_timed(lambda: _scored(model, batch, groups))[0] for _ in range(2))
    return {
        "one_batch_our_seconds": ours,
        **{f"one_batch_{name}_seconds": value for name, value in theirs.items()},
        "over_torch_pruning": ours / sum(theirs.values()),
        "over_no_hessian": ours / sum(v for name, v in theirs.items() if name != "hessian"),
    }


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    begin = clock()
    found = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - begin, found


def _torch_pruning(model: nn.Module, data: Data) -> dict[str, float]:
    """Seconds that Torch-Pruning takes for each of its own importances of all groups."""
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=data[0][0][:1])
    groups = list(graph.get_all_groups())

    def all_groups(importance: Callable[[object], object]) -> None:
        for group in groups:
            importance(group)

    def taylor() -> None:
        _gradients(model, data)
        all_groups(tp.importance.GroupTaylorImportance())

    def hessian() -> None:
        # As its documentation says: one backward pass for each image.
        importance = tp.importance.GroupHessianImportance()
        importance.zero_grad()
        for images, labels in data:
            losses = functional.cross_entropy(model(images), labels, reduction="none")
            for loss in losses:
                model.zero_grad()
                torch.autograd.backward(loss, retain_graph=True)
                importance.accumulate_grad(model)
        all_groups(importance)

    calls: dict[str, Callable[[], object]] = {
        "magnitude": lambda: all_groups(tp.importance.GroupMagnitudeImportance(p=2)),
        "batchnorm": lambda: all_groups(tp.importance.BNScaleImportance()),
        "fpgm": lambda: all_groups(tp.importance.FPGMImportance()),
        "taylor": taylor,
        "hessian": hessian,
    }
    seconds = {name: _timed(call)[0] for name, call in calls.items()}
    model.zero_grad(set_to_none=True)
    return seconds


def _gradients(model: nn.Module, data: Data) -> None:
    model.zero_grad(set_to_none=True)
    for images, labels in data:
        torch.autograd.backward(functional.cross_entropy(model(images), labels))


def _pairwise_seconds() -> dict[str, float]:
    """The longest that FPGM or WHC takes for a group of vgg16_bn, by the group's width."""
    model = torchvision.models.vgg16_bn().eval()
    images = torch.randn(1, 3, 64, 64)
    groups = find_groups(model, images).required()
    data = [(images, torch.zeros(len(images), dtype=torch.long))]
    longest = {512: 0.0, 4096: 0.0}
    for metric in ("fpgm", "whc"):
        # Again for each: what one metric computes of the filters would serve the next.
        signals = measure_signals(model, data, groups, needs={"weights"})
        for name, group in groups.items():
            seconds = _timed(partial(score_signals, {name: signals[name]}, [metric]))[0]
            if group.channels in longest:
                longest[group.channels] = max(longest[group.channels], seconds)
    return {f"vgg16_bn_{width}_wide_pairwise_seconds": s for width, s in longest.items()}


def _peak_mib(case: str, what: str, batches: int) -> float:
    """Peak memory of a fresh process while it does one thing, over what it held before, MiB."""
    command = [sys.executable, "-m", "training.benchmarks.speed.saliency", case, what, str(batches)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


class _Repeated:
    """The same few batches, read many times: data that take no memory of their own."""

    def __init__(self, data: Data, batches: int) -> None:
        self._data, self._batches = data, batches

    def __iter__(self):  # type: ignore[no-untyped-def]
        return (self._data[i % len(self._data)] for i in range(self._batches))


def _child(case: str, what: str, batches: int) -> None:
    """In a process of its own: print the peak, in MiB."""
    torch.set_num_threads(1)
    model, data = _set_up(CASES[case], 1)
    groups = find_groups(model, data[0][0][:1]).required()
    _plain(model, [(images[:1], labels[:1]) for images, labels in data])
    before = _reset_peak()
    repeated = _Repeated(data, batches)
    if what == "plain":
        _plain(model, repeated)  # type: ignore[arg-type]
    else:
        _scored(model, repeated, groups)  # type: ignore[arg-type]
    print(json.dumps((_peak_bytes() - before) / 2**20))


def _reset_peak() -> float:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # Resets the high-water mark of the resident memory.
    return _resident("VmRSS")


def _peak_bytes() -> float:
    return (
        float(torch.cuda.max_memory_allocated())
        if torch.cuda.is_available()
        else _resident("VmHWM")
    )


def _resident(field: str) -> float:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return float(line.split()[1]) * 1024


if __name__ == "__main__":
    _child(sys.argv[1], sys.argv[2], int(sys.argv[3]))
