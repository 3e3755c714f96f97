"""The commands that prune in several ways and compare: compare, demo."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from selector.cli import options as opt
from selector.cli.bundles import Goal, Images, Network
from selector.cli.command import printed
from selector.cli.dry import would_write
from selector.cli.inputs import names
from selector.cli.outputs import check_files, progress_wanted, tell_written
from selector.cli.state import StateFolder
from selector.errors import SelectorError
from selector.files import write_text, write_whole


@printed
def compare(
    network: Network,
    data: opt.Data,
    images: Images,
    goal: Goal,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Which ways, as in l1,selector,verify; by default l1, single-best, rank-mean, "
            "reconstruction, even, selector, verify, and oracle, which measures every metric's "
            "choice and takes the longest (a ratio leaves selector and verify no widths to choose)."
        ),
    ] = None,
    selector_folder: opt.SelectorFolder = None,
    rounds: opt.Rounds = None,
    test_data: opt.TestData = None,
    output: Annotated[Path | None, typer.Option(help="Write the table, as JSON.")] = None,
    plot: opt.Plot = None,
    checkpoint: opt.Checkpoint = None,
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
) -> str:
    """Prune your network in several ways, and compare accuracy, loss, and what each has cost."""
    check_files([output, plot], [network.weights, data, test_data])
    asked = None if methods is None else names(methods, "--methods")
    loaded = network.read()
    batches, test_batches = images.read(data, loaded.preparation, test_data)
    if len(goal.targets) != 1:
        raise SelectorError("give exactly one target, such as --keep-macs 0.5")

    from selector.learning.selector import SaliencySelector
    from selector.planning.target import Target
    from selector.pruning.method_comparison import METHODS, compare_methods, methods_for

    unknown = [name for name in asked or () if name not in METHODS]
    if unknown:
        raise SelectorError(
            f"--methods: unknown method {unknown[0]!r}; known: {', '.join(METHODS)}"
        )
    if dry_run:
        ways = asked or methods_for(Target.of(goal.targets))
        return f"would prune by {', '.join(ways)}\n{would_write([output, plot])}"
    typed = {"options": [asdict(one) for one in (network, images, goal)], "data": data}
    with StateFolder(checkpoint, output or plot, typed).resumable() as folder:
        found = compare_methods(
            loaded.model,
            batches,
            methods=asked,
            selector=None if selector_folder is None else SaliencySelector.load(selector_folder),
            rounds=rounds,
            test_batches=test_batches,
            checkpoint=folder,
            progress=progress_wanted(),
            **goal.targets,
        )
        if output is not None:
            write_text(output, found.to_json() + "\n")
        if plot is not None:
            figure = found.plot()
            write_whole(plot, lambda file: figure.savefig(file, format=opt.kind_of(plot)))
    tell_written(output, plot)
    return found.to_json() if as_json else str(found)


@printed
def sensitivity(
    network: Network,
    data: opt.Data,
    images: Images,
    ratios: Annotated[
        str, typer.Option(help="Shares of a group's channels to take away, as in 0.1,0.5.")
    ] = "0.1,0.25,0.5,0.75",
    criterion: opt.Criterion = "selector",
    ignore: opt.Ignore = None,
    output: Annotated[Path | None, typer.Option(help="Write all rows, as Parquet.")] = None,
    plot: opt.Plot = None,
    checkpoint: opt.Checkpoint = None,
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
) -> str:
    """Measure what taking channels from one group alone does to the loss, at several ratios."""
    from selector.cli.inputs import numbers
    from selector.planning.sensitivity import sensitivity as measured

    check_files([output, plot], [network.weights, data])
    asked = numbers(ratios, "--ratios")
    loaded = network.read()
    batches, _ = images.read(data, loaded.preparation)
    if dry_run:
        return would_write([output, plot])
    typed = {"options": [asdict(one) for one in (network, images)], "ratios": ratios, "data": data}
    with StateFolder(checkpoint, output or plot, typed).resumable() as folder:
        found = measured(
            loaded.model,
            batches,
            ratios=asked,
            criterion=criterion,
            ignore=[] if ignore is None else names(ignore, "--ignore"),
            checkpoint=folder,
            progress=progress_wanted(),
        )
        if output is not None:
            found.save(output)
        if plot is not None:
            figure = found.plot()
            write_whole(plot, lambda file: figure.savefig(file, format=opt.kind_of(plot)))
    tell_written(output, plot)
    return json.dumps([asdict(row) for row in found.rows], indent=1) if as_json else str(found)


@printed
def demo(as_json: opt.Json = False) -> str:
    """Prune a small trained network on handwritten digits by several methods; needs no files."""
    from selector.cli.demo import run

    result = run(progress=progress_wanted())
    return result.to_json() if as_json else str(result)
