"""The commands on a user's network: score, choose, prune, record."""

import json
from pathlib import Path
from typing import Annotated, cast

import torch
import typer

from selector import options as opt
from selector.allocation import Target, Targets
from selector.checkpoint import save_pruned
from selector.errors import SelectorError
from selector.method import Allocation, Method
from selector.planning import choose as choose_plan
from selector.pruning import prune as prune_network
from selector.recording import record as record_network
from selector.saliency import find_metric
from selector.scoring import Scores
from selector.scoring import score as score_network
from selector.selection import SaliencySelector
from selector.tables import text_table
from selector.user_input import ImageOptions, names, read_data, read_model, verify_count
from selector.user_output import (
    check_files,
    check_new_records,
    printed,
    progress_wanted,
    tell_written,
)


@printed
def score(
    model: opt.Model,
    data: opt.Data,
    weights: opt.Weights = None,
    metrics: Annotated[
        str | None, typer.Option(help="Metrics, as in taylor,l1; all by default.")
    ] = None,
    images: opt.Images = None,
    batch_size: opt.BatchSize = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    bgr: opt.Bgr = False,
    as_json: opt.Json = False,
) -> str:
    """Score every channel of every prunable group; the lowest would go first."""
    chosen = None if metrics is None else names(metrics, "--metrics")
    for name in chosen or ():
        find_metric(name)
    batches, _ = read_data(data, None, ImageOptions(images, batch_size, mean, std, size, bgr))
    scores = score_network(read_model(model, weights), batches, chosen)
    if as_json:
        return json.dumps(
            {g: {m: s.tolist() for m, s in found.items()} for g, found in scores.items()}, indent=1
        )
    return _score_table(scores)


def _score_table(scores: Scores) -> str:
    cells = [
        [
            group,
            f"{len(values)}",
            metric,
            *(f"{float(v):.4g}" for v in (values.min(), values.median(), values.max())),
            " ".join(str(int(c)) for c in torch.argsort(values, stable=True)[:8]),
        ]
        for group, found in scores.items()
        for metric, values in found.items()
    ]
    columns = ["group", "channels", "metric", "lowest", "median", "highest", "first to go"]
    return text_table(columns, cells)


def _targets(**shares: float | None) -> Targets:
    return cast(Targets, {name: share for name, share in shares.items() if share is not None})


def _method(criterion: str, verify: str, folder: Path | None, allocation: str) -> Method:
    """The method, checked; its selector is loaded before any image is read."""
    if folder is not None and criterion != "selector":
        raise SelectorError(f"--selector {folder} does nothing with --criterion {criterion}")
    selector = None if folder is None else SaliencySelector.load(folder)
    return Method(criterion, verify_count(verify), selector, cast(Allocation, allocation))


@printed
def choose(
    model: opt.Model,
    data: opt.Data,
    weights: opt.Weights = None,
    keep_macs: opt.KeepMacs = None,
    keep_params: opt.KeepParams = None,
    keep_weights: opt.KeepWeights = None,
    ratio: opt.Ratio = None,
    criterion: opt.Criterion = "selector",
    verify: opt.VerifyText = "0",
    selector: opt.SelectorFolder = None,
    ignore: opt.Ignore = None,
    allocation: opt.AllocationName = "even",
    max_ratio: opt.MaxRatio = 0.9,
    round_to: opt.RoundTo = 1,
    output: Annotated[Path | None, typer.Option(help="Write the plan here, as JSON.")] = None,
    images: opt.Images = None,
    batch_size: opt.BatchSize = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    bgr: opt.Bgr = False,
    as_json: opt.Json = False,
) -> str:
    """Plan what to remove in one step, and say by which metric; the network stays as it is."""
    target = _targets(
        keep_macs=keep_macs, keep_params=keep_params, keep_weights=keep_weights, ratio=ratio
    )
    check_files([output], [weights, Path(data)])
    method = _method(criterion, verify, selector, allocation)
    method.check(Target.of(target))
    batches, _ = read_data(data, None, ImageOptions(images, batch_size, mean, std, size, bgr))
    plan = choose_plan(
        read_model(model, weights),
        batches,
        criterion=method.criterion,
        verify=method.verify,
        selector=method.selector,
        ignore=() if ignore is None else names(ignore, "--ignore"),
        allocation=method.allocation,
        max_ratio=max_ratio,
        round_to=round_to,
        progress=progress_wanted(),
        **target,
    )
    if output is not None:
        plan.save(output)
    tell_written(output)
    return plan.to_json() if as_json else str(plan)


@printed
def prune(
    model: opt.Model,
    data: opt.Data,
    weights: opt.Weights = None,
    keep_macs: opt.KeepMacs = None,
    keep_params: opt.KeepParams = None,
    keep_weights: opt.KeepWeights = None,
    ratio: opt.Ratio = None,
    criterion: opt.Criterion = "selector",
    verify: opt.VerifyText = "0",
    selector: opt.SelectorFolder = None,
    ignore: opt.Ignore = None,
    allocation: opt.AllocationName = "even",
    max_ratio: opt.MaxRatio = 0.9,
    round_to: opt.RoundTo = 1,
    rounds: Annotated[int, typer.Option(help="Cuts; scores are made anew before each.")] = 5,
    no_recalibrate: Annotated[
        bool, typer.Option("--no-recalibrate", help="Keep BatchNorm's running statistics.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write the small network (safetensors); see load_pruned.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report, as HTML.")] = None,
    plan: Annotated[Path | None, typer.Option(help="Write all rounds as one plan, JSON.")] = None,
    test_data: opt.TestData = None,
    images: opt.Images = None,
    batch_size: opt.BatchSize = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    bgr: opt.Bgr = False,
    as_json: opt.Json = False,
) -> str:
    """Remove channels until the target is met, every group by the metric to trust there."""
    target = _targets(
        keep_macs=keep_macs, keep_params=keep_params, keep_weights=keep_weights, ratio=ratio
    )
    read = [weights, Path(data), None if test_data is None else Path(test_data)]
    check_files([output, report, plan], read)
    method = _method(criterion, verify, selector, allocation)
    method.check(Target.of(target))
    options = ImageOptions(images, batch_size, mean, std, size, bgr)
    batches, test_batches = read_data(data, test_data, options)
    result = prune_network(
        read_model(model, weights),
        batches,
        criterion=method.criterion,
        verify=method.verify,
        selector=method.selector,
        ignore=() if ignore is None else names(ignore, "--ignore"),
        allocation=method.allocation,
        max_ratio=max_ratio,
        round_to=round_to,
        rounds=rounds,
        recalibrate=not no_recalibrate,
        test_batches=test_batches,
        progress=progress_wanted(),
        **target,
    )
    if output is not None:
        save_pruned(result.model, output)
    if plan is not None:
        result.plan.save(plan)
    if report is not None:
        result.report.save_html(report)
    tell_written(output, plan, report)
    return result.report.to_json() if as_json else str(result.report)


@printed
def record(
    model: opt.Model,
    data: opt.Data,
    network: Annotated[str, typer.Option(help="Name of the network in the records.")],
    output: Annotated[Path, typer.Option(help="Folder of records; this network's is added.")],
    weights: opt.Weights = None,
    family: Annotated[str, typer.Option(help="Kind of architecture, for evaluation.")] = "",
    dataset: Annotated[str, typer.Option(help="Name of the data set.")] = "",
    contexts: Annotated[
        int, typer.Option(min=0, help="Pruned states that are recorded beside the unpruned one.")
    ] = 2,
    journal: Annotated[
        Path | None, typer.Option(help="Folder where a killed run continues.")
    ] = None,
    images: opt.Images = None,
    batch_size: opt.BatchSize = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    bgr: opt.Bgr = False,
    as_json: opt.Json = False,
) -> str:
    """Measure what each metric's choice does to the loss: what a selector learns from."""
    check_new_records(output, network)
    batches, _ = read_data(data, None, ImageOptions(images, batch_size, mean, std, size, bgr))
    measured = record_network(
        read_model(model, weights),
        batches,
        network=network,
        family=family,
        dataset=dataset,
        contexts=contexts,
        journal=journal,
        progress=progress_wanted(),
    )
    measured.save(output)
    found = {
        "folder": str(output / network),
        "network": network,
        "states": len({row.context for row in measured.groups}),
        "groups": len({row.group for row in measured.groups}),
        "candidates": len(measured.candidates),
        "images": measured.networks[0].images,
    }
    if as_json:
        return json.dumps(found, indent=1)
    return (
        "{folder}: {candidates} candidates in {groups} groups and {states} states of the network, "
        "on twice {images} images"
    ).format(**found)
