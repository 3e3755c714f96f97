"""The commands that measure a user's network: score, record."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from selector.cli import options as opt
from selector.cli.inputs import ImageOptions, names, read_data, read_model
from selector.cli.outputs import check_new_records, printed, progress_wanted
from selector.recording.record import record as record_network
from selector.saliency.registry import find_metric
from selector.saliency.scoring import Scores
from selector.saliency.scoring import score as score_network
from selector.tables import text_table


@printed
def score(
    model: opt.Model,
    data: opt.Data,
    weights: opt.Weights = None,
    metrics: Annotated[
        str | None, typer.Option(help="Metrics, as in taylor,l1; all by default.")
    ] = None,
    images: opt.Images = None,
    batch_size: opt.BatchSize = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    bgr: opt.Bgr = False,
    as_json: opt.Json = False,
) -> str:
    """Score every channel of every prunable group; the lowest are removed first."""
    chosen = None if metrics is None else names(metrics, "--metrics")
    for name in chosen or ():
        find_metric(name)
    batches, _ = read_data(data, None, ImageOptions(images, batch_size, mean, std, size, bgr))
    scores = score_network(read_model(model, weights), batches, chosen)
    if as_json:
        return json.dumps(
            {g: {m: s.tolist() for m, s in found.items()} for g, found in scores.items()}, indent=1
        )
    return _score_table(scores)


def _score_table(scores: Scores) -> str:
    cells = [
        [
            group,
            f"{len(values)}",
            metric,
            *(f"{float(v):.4g}" for v in (values.min(), values.median(), values.max())),
            " ".join(str(int(c)) for c in torch.argsort(values, stable=True)[:8]),
        ]
        for group, found in scores.items()
        for metric, values in found.items()
    ]
    columns = ["group", "channels", "metric", "lowest", "median", "highest", "first to go"]
    return text_table(columns, cells)


@printed
def record(
    model: opt.Model,
    data: opt.Data,
    network: Annotated[str, typer.Option(help="Name of the network in the records.")],
    output: Annotated[Path, typer.Option(help="Folder of records; this network's is added.")],
    weights: opt.Weights = None,
    family: Annotated[str, typer.Option(help="Kind of architecture, for evaluation.")] = "",
    dataset: Annotated[str, typer.Option(help="Name of the data set.")] = "",
    contexts: Annotated[
        int, typer.Option(min=0, help="Pruned states to record, besides the unpruned one.")
    ] = 2,
    journal: Annotated[
        Path | None, typer.Option(help="Folder where a killed run continues.")
    ] = None,
    images: opt.Images = None,
    batch_size: opt.BatchSize = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    bgr: opt.Bgr = False,
    as_json: opt.Json = False,
) -> str:
    """Measure what each metric's choice does to the loss: what a selector learns from."""
    check_new_records(output, network)
    batches, _ = read_data(data, None, ImageOptions(images, batch_size, mean, std, size, bgr))
    measured = record_network(
        read_model(model, weights),
        batches,
        network=network,
        family=family,
        dataset=dataset,
        contexts=contexts,
        journal=journal,
        output=output,
        progress=progress_wanted(),
    )
    found = {
        "folder": str(output / network),
        "network": network,
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
