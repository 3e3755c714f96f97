"""The commands that read a saved plan: apply; and explain, where it is given one."""

import json
from pathlib import Path
from typing import Annotated

import typer

from selector.cli import options as opt
from selector.cli.inputs import ImageOptions, read_data, read_model
from selector.cli.outputs import check_files, printed, tell_written
from selector.errors import SelectorError
from selector.learning.explanation import Explanation
from selector.network.checkpoint import save_pruned
from selector.planning.plan import Plan
from selector.pruning.apply import apply_plan
from selector.tables import count_text


@printed
def apply(
    plan: Annotated[Path, typer.Option(help="A plan of choose or prune, JSON.")],
    model: opt.Model,
    output: Annotated[
        Path, typer.Option(help="Write the small network (safetensors); see load_pruned.")
    ],
    weights: opt.Weights = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="As for prune; without it, the plan's cuts are carried out as they are written.",
            rich_help_panel="The images",
        ),
    ] = None,
    compensate: opt.Compensate = False,
    images: opt.Images = None,
    batch_size: opt.BatchSize = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    bgr: opt.Bgr = False,
    as_json: opt.Json = False,
) -> str:
    """Carry out a plan on the network that it was made for."""
    check_files([output], [plan, weights, None if data is None else Path(data)])
    asked = Plan.load(plan)
    options = ImageOptions(images, batch_size, mean, std, size, bgr)
    batches = None
    if data is not None:
        batches, _ = read_data(data, None, options)
    elif options.typed:
        raise SelectorError(f"{options.typed[0]} does nothing without --data; leave it out")
    network = read_model(model, weights)
    small = apply_plan(network, asked, batches, compensate=compensate)
    save_pruned(small, output)
    tell_written(output)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (network, small))
    if as_json:
        return json.dumps({"output": str(output), "parameters": [before, after]})
    return f"parameters {count_text(before)} -> {count_text(after)} ({after / before:.1%})"


def explanations(plan: Plan, group: str | None) -> dict[str, Explanation]:
    """Why the selector trusted the metric that it did, by group.

    Args:
        plan: Made by the selector.
        group: The only group that is asked for; all of the plan's by default.

    Raises:
        SelectorError: The plan takes nothing from the group, or no selector made it.
    """
    names = [choice.group for choice in plan.choices] if group is None else [group]
    return {name: plan.explain(name) for name in names}
