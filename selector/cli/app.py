"""`saliency-selector`: the command."""

import json
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from selector.cli import demo as demos
from selector.cli import learn as selector_commands
from selector.cli import measure as measuring_commands
from selector.cli import options as opt
from selector.cli import plan as plan_commands
from selector.cli import prune as network_commands
from selector.cli import repair as repair_commands
from selector.cli.inputs import import_module
from selector.cli.outputs import REFUSED, printed, progress_wanted
from selector.errors import SelectorError
from selector.saliency.checks import check_metric
from selector.saliency.grammar import systematic_names
from selector.saliency.proposals.registry import PROPOSALS, Proposal
from selector.saliency.registry import METRICS, Metric, find_metric
from selector.tables import text_table

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune trained networks, with the saliency metric to trust in each layer.\n\n"
    "Exit status: 0 if all is done; 1 for a bug (with a traceback); 2 for input that cannot be "
    "used or a run that had to stop, with one line that says why; 3 if nothing could be removed.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"saliency-selector {version('saliency-selector')}")
        raise typer.Exit


@app.callback()
def start(
    plugins: Annotated[
        list[str] | None,
        typer.Option("--import", help="Module that registers metrics of your own; imported first."),
    ] = None,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version, and exit."
        ),
    ] = False,
) -> None:
    """Import what registers metrics, before the command runs."""
    for module in plugins or ():
        try:
            import_module(module, "--import")
        except SelectorError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(REFUSED) from error


@app.command()
@printed
def metrics(
    grammar: Annotated[
        bool, typer.Option("--grammar", help="List the systematic names of the grammar instead.")
    ] = False,
    check: Annotated[
        str | None, typer.Option(help="Try the laws, and the slow twin if any, on this metric.")
    ] = None,
    as_json: opt.Json = False,
) -> str:
    """List the saliency metrics, then the proposals of sets: what each does, needs, comes from."""
    if check is not None:
        check_metric(check)
        return json.dumps({"name": check, "laws": "hold"}) if as_json else f"{check}: laws hold"
    found = [find_metric(n) for n in systematic_names()] if grammar else list(METRICS.values())
    rows = [_row(metric, "ranking", metric.arm) for metric in found]
    if not grammar:
        sets = [proposal for name, proposal in PROPOSALS.items() if name not in METRICS]
        rows += [_row(proposal, proposal.kind, False) for proposal in sets]
    if as_json:
        return json.dumps(rows, indent=1)
    if grammar:
        return text_table(["metric", "needs"], [[str(r["name"]), str(r["needs"])] for r in rows])
    headings = ["name", "kind", "needs", "selector may choose it", "source", "what it is"]
    cells = [[_cell(value) for value in row.values()] for row in rows]
    return text_table(headings, cells)


def _row(listed: Metric | Proposal, kind: str, arm: bool) -> dict[str, str | bool]:
    return {
        "name": listed.name,
        "kind": kind,
        "needs": listed.listed_needs,
        "arm": arm,
        "source": listed.source,
        "summary": listed.summary,
    }


def _cell(value: str | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value


app.command()(measuring_commands.score)
app.command()(network_commands.choose)
app.command()(network_commands.prune)
app.command()(plan_commands.apply)
app.command()(repair_commands.repair)
app.command()(repair_commands.distil)
app.command()(measuring_commands.record)
app.command()(selector_commands.explain)
app.command()(selector_commands.fit)
app.command()(selector_commands.evaluate)


@app.command()
@printed
def demo(as_json: opt.Json = False) -> str:
    """Prune a small trained network on handwritten digits by several methods; needs no files."""
    result = demos.run(progress=progress_wanted())
    return result.to_json() if as_json else str(result)


def main() -> None:
    """Run the command."""
    app()
