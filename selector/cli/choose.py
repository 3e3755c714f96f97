"""The command `choose`: a plan, and nothing is changed."""

from pathlib import Path
from typing import Annotated

import typer

import selector
from selector.cli import options as opt
from selector.cli.bundles import Bounds, Goal, Images, Network, Way
from selector.cli.command import printed
from selector.cli.dry import what_would_be_done
from selector.cli.outputs import check_files, progress_wanted, tell_written


@printed
def choose(
    network: Network,
    data: opt.Data,
    images: Images,
    goal: Goal,
    way: Way,
    bounds: Bounds,
    compensate: opt.Compensate = False,
    output: Annotated[Path | None, typer.Option(help="Write the plan, as JSON.")] = None,
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
) -> str:
    """Plan what to remove in one step, and say by which metric; the network stays as it is."""
    check_files([output], [network.weights, data])
    chosen = way.checked(goal, bounds.own)
    loaded = network.read()
    batches, _ = images.read(data, loaded.preparation)
    if dry_run:
        return what_would_be_done(network.model, loaded.model, batches, goal, bounds, [output])
    plan = selector.choose(
        loaded.model,
        batches,
        **chosen,
        **bounds.allowed,
        compensate=compensate,
        progress=progress_wanted(),
        **goal.targets,
    )
    if output is not None:
        plan.save(output)
    tell_written(output)
    return plan.to_json() if as_json else str(plan)
