"""The commands that repair a pruned network: repair, distil."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import selector
from selector.cli import options as opt
from selector.cli.bundles import Images, Network
from selector.cli.command import printed
from selector.cli.dry import would_write
from selector.cli.outputs import check_files, progress_wanted, tell_written
from selector.errors import SelectorError

if TYPE_CHECKING:
    from torch import nn

    from selector.cli.models import Loaded


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What is repaired, and where it goes."""

    plan: Annotated[
        Path, typer.Option(help="The plan by which the network was pruned, of prune --plan; JSON.")
    ]
    output: Annotated[
        Path, typer.Option(help="Write the repaired network (safetensors); an input of --weights.")
    ]
    pruned: Annotated[
        Path | None,
        typer.Option(
            help="The pruned network's tensors, of prune --output; by default what the plan leaves."
        ),
    ] = None

    def check(self, network: Network, data: str) -> "selector.Plan":
        """Make sure that the files are there, and read the plan.

        Raises:
            SelectorError: They are not, or the plan removes nothing.
        """
        check_files([self.output], [self.plan, network.weights, self.pruned, data])
        plan = selector.Plan.load(self.plan)
        if not plan.cuts:
            raise SelectorError("the plan removes nothing, so there is nothing to repair")
        return plan

    def read(self, loaded: "Loaded", plan: "selector.Plan") -> "nn.Module":
        """What the plan left of the network, with the file's tensors if any."""
        from selector.network.checkpoint import load_tensors, read_tensors

        small = selector.apply_plan(loaded.model, plan)
        if self.pruned is not None:
            load_tensors(small, read_tensors(self.pruned), self.pruned)
        return small


@printed
def repair(
    network: Network,
    data: opt.Data,
    files: Pruned,
    images: Images,
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
) -> str:
    """Refit a pruned network, without labels, to give what the unpruned one gives."""
    plan = files.check(network, data)
    loaded = network.read()
    batches, _ = images.read(data, loaded.preparation)
    small = files.read(loaded, plan)
    if dry_run:
        return would_write([files.output])
    found = selector.reconstruct(loaded.model, small, batches, kept=plan.cuts)
    selector.save_pruned(found.model, files.output)
    tell_written(files.output)
    if not as_json:
        return str(found.report)
    return json.dumps({"output": str(files.output), "summary": found.report.summary})


@printed
def distil(
    network: Network,
    data: opt.Data,
    files: Pruned,
    images: Images,
    minutes: Annotated[float, typer.Option(help="Minutes to train.")] = 1.0,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror", help="Mirror half of the images; never for digits or traffic signs."
        ),
    ] = False,
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
) -> str:
    """Train a pruned network a short while, without labels, towards the unpruned one's outputs."""
    plan = files.check(network, data)
    loaded = network.read()
    batches, _ = images.read(data, loaded.preparation)
    small = files.read(loaded, plan)
    if dry_run:
        return would_write([files.output])
    found = selector.distil(
        loaded.model, small, batches, minutes=minutes, mirror=mirror, progress=progress_wanted()
    )
    selector.save_pruned(found.model, files.output)
    tell_written(files.output)
    if not as_json:
        return str(found.report)
    report = found.report
    return json.dumps(
        {
            "output": str(files.output),
            "divergence": [report.divergence_before, report.divergence_after],
            "held_out": report.held_out,
        }
    )
