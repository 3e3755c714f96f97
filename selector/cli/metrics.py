"""The command `metrics`: what there is to choose from."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

import selector
from selector.cli import options as opt
from selector.cli.command import printed
from selector.tables import text_table

if TYPE_CHECKING:
    from selector.saliency.proposals.registry import Proposal
    from selector.saliency.registry import Metric


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
    from selector.saliency.grammar import systematic_names
    from selector.saliency.registry import find_metric

    if check is not None:
        selector.check_metric(check)
        return json.dumps({"name": check, "laws": "hold"}) if as_json else f"{check}: laws hold"
    table = selector.METRICS
    found = [find_metric(n) for n in systematic_names()] if grammar else list(table.values())
    rows = [_row(metric, "ranking", metric.arm) for metric in found]
    if not grammar:
        sets = [one for name, one in selector.PROPOSALS.items() if name not in table]
        rows += [_row(proposal, proposal.kind, False) for proposal in sets]
    if as_json:
        return json.dumps(rows, indent=1)
    if grammar:
        return text_table(["metric", "needs"], [[str(r["name"]), str(r["needs"])] for r in rows])
    return "\n".join(map(_lines, rows))


def _row(listed: "Metric | Proposal", kind: str, arm: bool) -> dict[str, str | bool]:
    return {
        "name": listed.name,
        "kind": kind,
        "needs": listed.listed_needs,
        "arm": arm,
        "source": listed.source,
        "summary": listed.summary,
    }


def _lines(row: dict[str, str | bool]) -> str:
    """A metric in a few lines of its own: what it is, then what it needs and where it is from."""
    chosen = "; the selector may choose it" if row["arm"] else ""
    return (
        f"{row['name']} ({row['kind']}{chosen})\n  {row['summary']}\n"
        f"  needs {row['needs']}; {row['source']}"
    )
