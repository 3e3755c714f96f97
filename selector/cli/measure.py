"""The commands that measure a user's network: score, record."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import selector
from selector.cli import options as opt
from selector.cli.bundles import Images, Network
from selector.cli.command import printed
from selector.cli.dry import would_write
from selector.cli.inputs import names
from selector.cli.outputs import check_folder, progress_wanted
from selector.errors import SelectorError
from selector.tables import text_table

if TYPE_CHECKING:
    from selector.saliency.scoring import Scores


@printed
def score(
    network: Network,
    data: opt.Data,
    images: Images,
    metrics: Annotated[
        str | None, typer.Option(help="Metrics, as in taylor,l1; all by default.")
    ] = None,
    as_json: opt.Json = False,
) -> str:
    """Score every channel of every prunable group; the lowest are removed first."""
    from selector.saliency.registry import find_metric

    chosen = None if metrics is None else names(metrics, "--metrics")
    for name in chosen or ():
        find_metric(name)
    loaded = network.read()
    batches, _ = images.read(data, loaded.preparation)
    scores = selector.score(loaded.model, batches, chosen)
    if as_json:
        return json.dumps(
            {g: {m: s.tolist() for m, s in found.items()} for g, found in scores.items()}, indent=1
        )
    return _score_table(scores)


def _score_table(scores: "Scores") -> str:
    cells = [
        [
            group,
            f"{len(values)}",
            metric,
            *(f"{float(v):.4g}" for v in (values.min(), values.median(), values.max())),
            " ".join(str(int(c)) for c in values.argsort(stable=True)[:6]),
        ]
        for group, found in scores.items()
        for metric, values in found.items()
    ]
    columns = ["group", "channels", "metric", "lowest", "median", "highest", "first to go"]
    return text_table(columns, cells)


@printed
def record(
    network: Network,
    data: opt.Data,
    images: Images,
    network_name: Annotated[
        str, typer.Option("--network", help="Name of the network in the records.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of records; this network's is added.")],
    family: Annotated[str, typer.Option(help="Kind of architecture, for evaluation.")] = "",
    dataset: Annotated[str, typer.Option(help="Name of the data set.")] = "",
    contexts: Annotated[
        int, typer.Option(min=0, help="Pruned states to record, besides the unpruned one.")
    ] = 2,
    journal: Annotated[
        Path | None, typer.Option(help="Folder where a killed run continues.")
    ] = None,
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
) -> str:
    """Measure what each metric's choice does to the loss: what a selector learns from."""
    _check_new_records(output, network_name)
    loaded = network.read()
    batches, _ = images.read(data, loaded.preparation)
    if dry_run:
        return would_write([output / network_name])
    measured = selector.record(
        loaded.model,
        batches,
        network=network_name,
        family=family,
        dataset=dataset,
        contexts=contexts,
        journal=journal,
        output=output,
        progress=progress_wanted(),
    )
    found = {
        "folder": str(output / network_name),
        "network": network_name,
        "states": len({row.context for row in measured.groups}),
        "groups": len({row.group for row in measured.groups}),
        "candidates": len(measured.candidates),
        "images": measured.networks[0].images,
    }
    if as_json:
        return json.dumps(found, indent=1)
    return (
        "{folder}: {candidates} candidates in {groups} groups and {states} states of the network, "
        "on twice {images} images"
    ).format(**found)


def _check_new_records(folder: Path, network: str) -> None:
    """Make sure that a network's records can be added to a folder.

    Raises:
        SelectorError: The network is there already, the folder cannot be written, or it holds
            records of another schema version.
    """
    from selector.records.layout import FILES, SCHEMA_VERSION
    from selector.records.parquet import check_versions

    check_folder(folder)
    check_versions(folder, FILES, str(SCHEMA_VERSION))
    if (folder / network).exists():
        raise SelectorError(f"{folder / network} exists; choose another --network or --output")
