"""The commands that prune a user's network: choose, prune."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from selector.cli import options as opt
from selector.cli.inputs import ImageOptions, names, read_data, read_model, shares, verify_count
from selector.cli.outputs import (
    NOTHING_REMOVED,
    Printed,
    check_files,
    printed,
    progress_wanted,
    tell_written,
)
from selector.errors import SelectorError
from selector.learning.selector import SaliencySelector
from selector.network.checkpoint import save_pruned
from selector.planning.choose import choose as choose_plan
from selector.planning.criteria import Verify
from selector.planning.method import AllocationName, method_of
from selector.planning.target import Target, Targets
from selector.pruning.prune import prune as prune_network
from selector.pruning.result import PruneResult, PruningError


def _targets(**typed: float | None) -> Targets:
    return cast(Targets, {name: share for name, share in typed.items() if share is not None})


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """How channels are chosen, as `choose` and `prune` take it."""

    criterion: str
    verify: Verify
    selector: SaliencySelector | None
    allocation: AllocationName


def _chosen(
    criterion: str, verify: str, folder: Path | None, allocation: str, target: Target
) -> _Chosen:
    """The options, checked; the selector is loaded before any image is read."""
    if folder is not None and criterion != "selector" and allocation != "damage":
        raise SelectorError(f"--selector {folder} does nothing with --criterion {criterion}")
    found = _Chosen(
        criterion=criterion,
        verify=verify_count(verify),
        selector=None if folder is None else SaliencySelector.load(folder),
        allocation=cast(AllocationName, allocation),
    )
    method_of(
        criterion,
        target,
        verify=found.verify,
        selector=found.selector,
        allocation=found.allocation,
    )
    return found


@printed
def choose(
    model: opt.Model,
    data: opt.Data,
    weights: opt.Weights = None,
    keep_macs: opt.KeepMacs = None,
    keep_params: opt.KeepParams = None,
    keep_weights: opt.KeepWeights = None,
    keep_latency: opt.KeepLatency = None,
    ratio: opt.Ratio = None,
    criterion: opt.Criterion = "selector",
    verify: opt.VerifyText = "0",
    selector: opt.SelectorFolder = None,
    ignore: opt.Ignore = None,
    allocation: opt.AllocationName = "auto",
    max_ratio: opt.MaxRatio = 0.9,
    max_ratios: opt.MaxRatios = None,
    ratios: opt.Ratios = None,
    round_to: opt.RoundTo = 1,
    min_channels: opt.MinChannels = 1,
    compensate: opt.Compensate = False,
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
        keep_macs=keep_macs,
        keep_params=keep_params,
        keep_weights=keep_weights,
        keep_latency=keep_latency,
        ratio=ratio,
    )
    check_files([output], [weights, Path(data)])
    own = shares(ratios, "--ratios")
    method = _chosen(criterion, verify, selector, allocation, Target.of(target, own))
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
        max_ratios=shares(max_ratios, "--max-ratios"),
        ratios=own,
        round_to=round_to,
        min_channels=min_channels,
        compensate=compensate,
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
    keep_latency: opt.KeepLatency = None,
    ratio: opt.Ratio = None,
    criterion: opt.Criterion = "selector",
    verify: opt.VerifyText = "0",
    selector: opt.SelectorFolder = None,
    ignore: opt.Ignore = None,
    allocation: opt.AllocationName = "auto",
    max_ratio: opt.MaxRatio = 0.9,
    max_ratios: opt.MaxRatios = None,
    ratios: opt.Ratios = None,
    round_to: opt.RoundTo = 1,
    min_channels: opt.MinChannels = 1,
    compensate: opt.Compensate = False,
    rounds: opt.Rounds = None,
    max_loss_change: opt.MaxLossChange = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Folder for the state after every round, where a killed run continues."),
    ] = None,
    no_recalibrate: Annotated[
        bool, typer.Option("--no-recalibrate", help="Keep BatchNorm's running statistics.")
    ] = False,
    no_repair: Annotated[
        bool,
        typer.Option(
            "--no-repair", help="Do not refit what is left in closed form, as by default."
        ),
    ] = False,
    distil: Annotated[
        float | None,
        typer.Option(
            help="Minutes in which the network is then trained, without labels, towards the "
            "unpruned one's outputs."
        ),
    ] = None,
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
) -> str | Printed:
    """Remove channels until the target is met, every group by the metric to trust there."""
    target = _targets(
        keep_macs=keep_macs,
        keep_params=keep_params,
        keep_weights=keep_weights,
        keep_latency=keep_latency,
        ratio=ratio,
    )
    read = [weights, Path(data), None if test_data is None else Path(test_data)]
    check_files([output, report, plan], read)
    own = shares(ratios, "--ratios")
    method = _chosen(criterion, verify, selector, allocation, Target.of(target, own))
    options = ImageOptions(images, batch_size, mean, std, size, bgr)
    batches, test_batches = read_data(data, test_data, options)
    result = _pruned(
        _Files(output, report, plan),
        read_model(model, weights),
        batches,
        criterion=method.criterion,
        verify=method.verify,
        selector=method.selector,
        ignore=() if ignore is None else names(ignore, "--ignore"),
        allocation=method.allocation,
        max_ratio=max_ratio,
        max_ratios=shares(max_ratios, "--max-ratios"),
        ratios=own,
        round_to=round_to,
        min_channels=min_channels,
        compensate=compensate,
        rounds=rounds,
        max_loss_change=max_loss_change,
        checkpoint=checkpoint,
        recalibrate=not no_recalibrate,
        repair=False if no_repair else "auto",
        distil=distil,
        test_batches=test_batches,
        progress=progress_wanted(),
        **target,
    )
    text = result.report.to_json() if as_json else str(result.report)
    if result.plan.choices:
        return text
    first = f"nothing was removed: {' '.join(result.report.warnings[-1:]) or 'no cut was possible'}"
    return Printed(text if as_json else f"{first}\n{text}", NOTHING_REMOVED, first)


@dataclass(frozen=True)
class _Files:
    """The files that `prune` leaves behind."""

    output: Path | None
    report: Path | None
    plan: Path | None

    def write(self, result: PruneResult) -> None:
        if self.output is not None:
            save_pruned(result.model, self.output)
        if self.plan is not None:
            result.plan.save(self.plan)
        if self.report is not None:
            result.report.save_html(self.report)
        tell_written(self.output, self.plan, self.report)


def _pruned(files: _Files, *args: Any, **options: Any) -> PruneResult:
    """Prune, and write the files; also those of what was reached before a round failed."""
    try:
        result = prune_network(*args, **options)
    except PruningError as error:
        if error.result.rounds:
            files.write(error.result)
        raise
    files.write(result)
    return result
