"""The commands that read a saved plan: apply; and explain, where it is given one."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import selector
from selector.cli import options as opt
from selector.cli.bundles import Images, Network, parameters_of
from selector.cli.command import printed
from selector.cli.dry import would_write
from selector.cli.outputs import check_files, tell_written
from selector.errors import SelectorError
from selector.tables import count_text

if TYPE_CHECKING:
    from selector.learning.explanation import Explanation
    from selector.planning.plan import Plan


@printed
def apply(
    network: Network,
    plan: Annotated[Path, typer.Option(help="A plan of choose or prune, JSON.")],
    output: Annotated[
        Path,
        typer.Option(help="Write the small network (safetensors); an input of --weights."),
    ],
    images: Images,
    data: Annotated[
        str | None,
        typer.Option(
            help="As for prune; without it, the plan's cuts are carried out as they are written.",
            rich_help_panel="The images",
        ),
    ] = None,
    compensate: opt.Compensate = False,
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
) -> str:
    """Carry out a plan on the network that it was made for."""
    check_files([output], [plan, network.weights, data])
    asked = selector.Plan.load(plan)
    if data is None and images.typed:
        raise SelectorError(f"{images.typed[0]} does nothing without --data; leave it out")
    loaded = network.read()
    batches = None if data is None else images.read(data, loaded.preparation)[0]
    small = selector.apply_plan(loaded.model, asked, batches, compensate=compensate)
    before, after = parameters_of(loaded.model), parameters_of(small)
    if dry_run:
        return would_write([output])
    selector.save_pruned(small, output)
    tell_written(output)
    if as_json:
        return json.dumps({"output": str(output), "parameters": [before, after]})
    return f"parameters {count_text(before)} -> {count_text(after)} ({after / before:.1%})"


def explanations(plan: "Plan", group: str | None) -> "dict[str, Explanation]":
    """Why the selector trusted the metric that it did, by group.

    Args:
        plan: Made by the selector.
        group: The only group that is asked for; all of the plan's by default.

    Raises:
        SelectorError: The plan takes nothing from the group, or no selector made it.
    """
    names = [choice.group for choice in plan.choices] if group is None else [group]
    return {name: plan.explain(name) for name in names}
