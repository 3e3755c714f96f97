"""`saliency-selector`: the command."""

import json
from pathlib import Path
from typing import Annotated

import typer

from selector import demo as demos
from selector import network_commands
from selector import options as opt
from selector.records import Records
from selector.saliency import METRICS
from selector.selection import SaliencySelector
from selector.tables import text_table
from selector.user_output import (
    check_selector_folder,
    printed,
    progress_wanted,
    tell_written,
    write_selector,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which pruning saliency to trust in each layer of a trained network, and pruning by it.",
)


@app.command()
@printed
def metrics(as_json: opt.Json = False) -> str:
    """List the saliency metrics: what each computes, what it needs, where it comes from."""
    rows = [
        {"name": m.name, "needs": m.needs, "source": m.source, "arm": m.arm, "summary": m.summary}
        for m in METRICS.values()
    ]
    if as_json:
        return json.dumps(rows, indent=1)
    cells = [
        [m.name, m.needs, "yes" if m.arm else "no", m.source, m.summary] for m in METRICS.values()
    ]
    return text_table(["metric", "needs", "selector may choose it", "source", "what it is"], cells)


app.command()(network_commands.score)
app.command()(network_commands.choose)
app.command()(network_commands.prune)
app.command()(network_commands.record)


@app.command()
@printed
def fit(
    records: Annotated[Path, typer.Option(help="Folder of records, of two networks or more.")],
    output: Annotated[Path, typer.Option(help="Folder for the selector.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the selector that is there.")
    ] = False,
    as_json: opt.Json = False,
) -> str:
    """Fit a selector on your own records."""
    check_selector_folder(output, overwrite)
    measured = Records.load(records)
    learnt = SaliencySelector().fit(measured)
    write_selector(learnt, output)
    tell_written(output)
    if as_json:
        found = {
            "folder": str(output),
            "arms": learnt.arms_,
            "single_best": learnt.single_best_,
            "networks": learnt.networks_,
            "candidates": len(measured.candidates),
        }
        return json.dumps(found, indent=1)
    return (
        f"arms: {', '.join(learnt.arms_)}\nsingle best: {learnt.single_best_}\n"
        f"learnt from {len(measured.candidates)} candidates of {len(learnt.networks_)} networks"
    )


@app.command()
@printed
def demo(as_json: opt.Json = False) -> str:
    """Prune a small trained network on handwritten digits by several methods; needs no files."""
    result = demos.run(progress=progress_wanted())
    return result.to_json() if as_json else str(result)


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
