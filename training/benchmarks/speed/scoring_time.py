"""Processor seconds of scoring, over a plain pass and over Torch-Pruning's importances."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import torch
import torch_pruning as tp
import torchvision
from torch import nn
from torch.nn import functional

from selector.network.groups import Group
from selector.network.tracing import find_groups
from selector.saliency.scoring import score_signals
from selector.statistics.collect import measure_signals
from training.benchmarks.speed.scoring_cases import (
    Batches,
    SaliencyCase,
    plain_pass,
    scored,
    set_up,
)

T = TypeVar("T")


def seconds_of(case: SaliencyCase, repeats: int) -> dict[str, float]:
    """Times of one network and their ratios, by name; medians of as many turns."""
    model, data = set_up(case, case.batches)
    seconds, groups = _timed(lambda: find_groups(model, data[0][0][:2]).required())
    parts: dict[str, Callable[[], object]] = {
        "plain": lambda: plain_pass(model, data),
        "pass": lambda: measure_signals(model, data, groups),
        "ours": lambda: scored(model, data, groups),
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
    model: nn.Module, batch: Batches, groups: Mapping[str, Group]
) -> dict[str, float]:
    """Our seconds for one batch, and theirs."""
    theirs = _torch_pruning(model, batch)
    ours = statistics.median(_timed(lambda: scored(model, batch, groups))[0] for _ in range(2))
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


def _torch_pruning(model: nn.Module, data: Batches) -> dict[str, float]:
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


def _gradients(model: nn.Module, data: Batches) -> None:
    model.zero_grad(set_to_none=True)
    for images, labels in data:
        torch.autograd.backward(functional.cross_entropy(model(images), labels))


def pairwise_seconds() -> dict[str, float]:
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
