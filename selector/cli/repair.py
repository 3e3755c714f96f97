"""The commands that repair a pruned network: repair, distil."""

import json
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from selector.cli import options as opt
from selector.cli.inputs import ImageOptions, read_data, read_model
from selector.cli.outputs import check_files, printed, progress_wanted, tell_written
from selector.errors import SelectorError
from selector.network.checkpoint import load_tensors, read_tensors, save_pruned
from selector.planning.plan import Plan
from selector.pruning.apply import apply_plan
from selector.repair.distillation.distil import distil as distil_network
from selector.repair.reconstruction import reconstruct

PlanFile = Annotated[
    Path, typer.Option(help="The plan by which the network was pruned, of prune --plan; JSON.")
]
PrunedFile = Annotated[
    Path | None,
    typer.Option(
        help="The pruned network's tensors, of prune --output; by default what the plan leaves."
    ),
]
Output = Annotated[
    Path, typer.Option(help="Write the repaired network (safetensors); see load_pruned.")
]


def _networks(
    model: str, weights: Path | None, plan: Plan, pruned: Path | None
) -> tuple[nn.Module, nn.Module]:
    """The unpruned network, and what the plan left of it, with the file's tensors if any."""
    whole = read_model(model, weights)
    if not plan.cuts:
        raise SelectorError("the plan removes nothing, so there is nothing to repair")
    small = apply_plan(whole, plan)
    if pruned is not None:
        load_tensors(small, read_tensors(pruned), pruned)
    return whole, small


@printed
def repair(
    model: opt.Model,
    data: opt.Data,
    plan: PlanFile,
    output: Output,
    pruned: PrunedFile = None,
    weights: opt.Weights = None,
    images: opt.Images = None,
    batch_size: opt.BatchSize = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    bgr: opt.Bgr = False,
    as_json: opt.Json = False,
) -> str:
    """Refit a pruned network in closed form, without labels, to give what the unpruned one gives.

    Example: saliency-selector repair --model my:net --weights net.pth --data images/
    --plan plan.json --pruned small.safetensors --output repaired.safetensors
    """
    check_files([output], [plan, weights, pruned, Path(data)])
    asked = Plan.load(plan)
    options = ImageOptions(images, batch_size, mean, std, size, bgr)
    batches, _ = read_data(data, None, options)
    whole, small = _networks(model, weights, asked, pruned)
    found = reconstruct(whole, small, batches, kept=asked.cuts)
    save_pruned(found.model, output)
    tell_written(output)
    if not as_json:
        return str(found.report)
    return json.dumps({"output": str(output), "summary": found.report.summary})


@printed
def distil(
    model: opt.Model,
    data: opt.Data,
    plan: PlanFile,
    output: Output,
    minutes: Annotated[float, typer.Option(help="Minutes to train.")] = 1.0,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror", help="Mirror half of the images; never for digits or traffic signs."
        ),
    ] = False,
    pruned: PrunedFile = None,
    weights: opt.Weights = None,
    images: opt.Images = None,
    batch_size: opt.BatchSize = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    bgr: opt.Bgr = False,
    as_json: opt.Json = False,
) -> str:
    """Train a pruned network for a short while, without labels, towards the unpruned one's outputs.

    Example: saliency-selector distil --model my:net --weights net.pth --data images/
    --plan plan.json --pruned small.safetensors --minutes 1 --output distilled.safetensors
    """
    check_files([output], [plan, weights, pruned, Path(data)])
    asked = Plan.load(plan)
    options = ImageOptions(images, batch_size, mean, std, size, bgr)
    batches, _ = read_data(data, None, options)
    whole, small = _networks(model, weights, asked, pruned)
    found = distil_network(
        whole, small, batches, minutes=minutes, mirror=mirror, progress=progress_wanted()
    )
    save_pruned(found.model, output)
    tell_written(output)
    if not as_json:
        return str(found.report)
    report = found.report
    return json.dumps(
        {
            "output": str(output),
            "divergence": [report.divergence_before, report.divergence_after],
            "held_out": report.held_out,
        }
    )
