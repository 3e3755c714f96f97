"""The command `prune`: the smaller network, its report, and its plan."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import selector
from selector.cli import options as opt
from selector.cli.bundles import Bounds, Goal, Images, Network, Way
from selector.cli.command import printed
from selector.cli.dry import what_would_be_done
from selector.cli.outputs import (
    NOTHING_REMOVED,
    Printed,
    check_files,
    progress_wanted,
    remark,
    tell_written,
)
from selector.cli.state import StateFolder

if TYPE_CHECKING:
    from selector.pruning.result import PruneResult


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How the network gets there, step by step."""

    rounds: opt.Rounds = None
    max_loss_change: opt.MaxLossChange = None
    compensate: opt.Compensate = False
    no_recalibrate: Annotated[
        bool, typer.Option("--no-recalibrate", help="Keep BatchNorm's running statistics.")
    ] = False
    no_repair: Annotated[
        bool,
        typer.Option(
            "--no-repair", help="Do not refit what is left in closed form, as by default."
        ),
    ] = False
    distil: Annotated[
        float | None,
        typer.Option(
            help="Minutes in which the network is then trained, without labels, towards the "
            "unpruned one's outputs."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files that `prune` leaves behind."""

    output: opt.Output = None
    report: Annotated[Path | None, typer.Option(help="Write the report, as HTML.")] = None
    plan: Annotated[Path | None, typer.Option(help="Write all rounds as one plan, JSON.")] = None
    log: Annotated[
        Path | None, typer.Option(help="Write a line for every round as it ends, CSV.")
    ] = None
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the state after every round, where a stopped run goes on; by default "
            "beside --output, and taken away at the end."
        ),
    ] = None

    def write(self, result: "PruneResult") -> None:
        """Write what was reached."""
        if self.output is not None:
            selector.save_pruned(result.model, self.output)
        if self.plan is not None:
            result.plan.save(self.plan)
        if self.report is not None:
            result.report.save_html(self.report)
        tell_written(self.output, self.plan, self.report)


@printed
def prune(
    network: Network,
    data: opt.Data,
    images: Images,
    goal: Goal,
    way: Way,
    bounds: Bounds,
    steps: Steps,
    files: Files,
    test_data: opt.TestData = None,
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
) -> str | Printed:
    """Remove channels until the target is met, every group by the metric to trust there."""
    outputs = [files.output, files.report, files.plan, files.log]
    check_files(outputs, [network.weights, data, test_data])
    chosen = way.checked(goal, bounds.own)
    loaded = network.read()
    batches, test_batches = images.read(data, loaded.preparation, test_data)
    if dry_run:
        return what_would_be_done(
            network.model,
            loaded.model,
            batches,
            goal,
            bounds,
            outputs,
            steps.rounds,
            repaired=not (steps.no_repair or steps.no_recalibrate),
        )
    asked = [asdict(one) for one in (network, images, goal, way, bounds, steps)]
    state = StateFolder(files.checkpoint, files.output, {"options": asked, "data": data})
    result = _pruned(
        files,
        state,
        loaded.model,
        batches,
        **chosen,
        **bounds.allowed,
        compensate=steps.compensate,
        rounds=steps.rounds,
        max_loss_change=steps.max_loss_change,
        recalibrate=not steps.no_recalibrate,
        repair=False if steps.no_repair else "auto",
        distil=steps.distil,
        test_batches=test_batches,
        callbacks=[] if files.log is None else [selector.CsvLog(files.log)],
        progress=progress_wanted(),
        **goal.targets,
    )
    return _told(result, as_json=as_json)


def _told(result: "PruneResult", *, as_json: bool) -> str | Printed:
    text = result.report.to_json() if as_json else str(result.report)
    if result.plan.choices:
        return text
    first = f"nothing was removed: {' '.join(result.report.warnings[-1:]) or 'no cut was possible'}"
    return Printed(text if as_json else f"{first}\n{text}", NOTHING_REMOVED, first)


def _pruned(files: Files, state: StateFolder, *args: Any, **options: Any) -> "PruneResult":
    """Prune, and write the files; also those of what was reached before a round failed."""
    state.prepare()
    try:
        result = selector.prune(*args, checkpoint=state.path, **options)
    except selector.PruningError as error:
        rounds = len(error.result.rounds)
        if rounds:
            files.write(error.result)
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise state.interrupted(f"after {rounds} whole round{'s' * (rounds != 1)}") from error
        if state.holds_rounds:
            remark(state.way_on)
        raise
    except KeyboardInterrupt:
        raise state.interrupted("before the first round") from None
    finally:
        state.tidy()
    files.write(result)
    state.done()
    return result
