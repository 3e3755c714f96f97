"""The commands about the selector itself: explain, fit, evaluate."""

import json
from pathlib import Path
from typing import Annotated

import typer

from selector.cli import options as opt
from selector.cli.inputs import ImageOptions, names, read_data, read_model
from selector.cli.outputs import (
    check_selector_folder,
    printed,
    progress_wanted,
    tell_written,
)
from selector.cli.plan import explanations
from selector.errors import SelectorError
from selector.learning.compare import compare
from selector.learning.selector import SaliencySelector
from selector.planning.choose import choose
from selector.planning.plan import Plan
from selector.records.records import Records

RATIO = 0.25

RecordsFolder = Annotated[Path, typer.Option(help="Folder of records of your own networks.")]
BaseRecords = Annotated[
    Path | None,
    typer.Option("--with", help="Folder of other networks' records, to learn from as well."),
]
Weight = Annotated[
    float | None,
    typer.Option(help="Of your own networks' decisions, those of --with counting 1; 1 by default."),
]


@printed
def explain(
    model: opt.OptionalModel = None,
    data: opt.OptionalData = None,
    weights: opt.Weights = None,
    group: Annotated[
        str | None, typer.Option(help="The group to explain; all of them by default.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="A saved plan to explain, JSON; needs no network and no data."),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(help=f"Share of every group's channels to go; {RATIO} by default."),
    ] = None,
    selector: opt.SelectorFolder = None,
    ignore: opt.Ignore = None,
    images: opt.Images = None,
    batch_size: opt.BatchSize = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    bgr: opt.Bgr = False,
    as_json: opt.Json = False,
) -> str:
    """Say why the selector trusts a metric: the reasons, how sure it is, and the runner-up."""
    options = ImageOptions(images, batch_size, mean, std, size, bgr)
    if plan is not None:
        typed = {
            "--model": model,
            "--data": data,
            "--weights": weights,
            "--ratio": ratio,
            "--selector": selector,
            "--ignore": ignore,
        }
        unused = [name for name, value in typed.items() if value is not None] + options.typed
        if unused:
            raise SelectorError(f"{unused[0]} does nothing with --plan; leave it out")
        explained = Plan.load(plan)
    else:
        if model is None or data is None:
            raise SelectorError("explain needs --model and --data, or --plan with a saved plan")
        asked = None if selector is None else SaliencySelector.load(selector)
        batches, _ = read_data(data, None, options)
        explained = choose(
            read_model(model, weights),
            batches,
            selector=asked,
            ignore=() if ignore is None else names(ignore, "--ignore"),
            ratio=RATIO if ratio is None else ratio,
            progress=progress_wanted(),
        )
    found = explanations(explained, group)
    if as_json:
        return json.dumps({n: json.loads(one.to_json()) for n, one in found.items()}, indent=1)
    return "\n\n".join(f"{name}: {one}" for name, one in found.items())


@printed
def fit(
    records: Annotated[Path, typer.Option(help="Folder of records, of two networks or more.")],
    output: Annotated[Path, typer.Option(help="Folder for the selector.")],
    base: BaseRecords = None,
    weight: Weight = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the selector that is there.")
    ] = False,
    as_json: opt.Json = False,
) -> str:
    """Fit a selector on your own records, alone or together with others."""
    check_selector_folder(output, overwrite)
    _check_weight(weight, base)
    own = Records.load(records)
    mine = [provenance.network for provenance in own.own().networks]
    everything = own if base is None else own + Records.load(base)
    measured = everything.own()
    foreign = [p.network for p in everything.of_origin("foreign").networks]
    learnt = SaliencySelector().fit(
        measured, dict.fromkeys(mine, 1.0 if weight is None else weight)
    )
    learnt.save(output)
    tell_written(output)
    if as_json:
        found = {
            "folder": str(output),
            "arms": learnt.arms_,
            "single_best": learnt.single_best_,
            "networks": learnt.networks_,
            "candidates": len(measured.candidates),
            "left_out": foreign,
        }
        return json.dumps(found, indent=1)
    left_out = f"\nleft out, of foreign origin: {', '.join(foreign)}" if foreign else ""
    return (
        f"arms: {', '.join(learnt.arms_)}\nsingle best: {learnt.single_best_}\n"
        f"learnt from {len(measured.candidates)} candidates of {len(learnt.networks_)} networks"
        + left_out
    )


@printed
def evaluate(
    records: RecordsFolder,
    base: BaseRecords = None,
    weight: Weight = None,
    selector: opt.SelectorFolder = None,
    as_json: opt.Json = False,
) -> str:
    """Say whether retraining helps, on your own networks, each left out in turn."""
    _check_weight(weight, base)
    given = None if selector is None else SaliencySelector.load(selector)
    found = compare(
        Records.load(records),
        base=None if base is None else Records.load(base),
        weight=1.0 if weight is None else weight,
        given=given,
        progress=progress_wanted(),
    )
    return found.to_json() if as_json else str(found)


def _check_weight(weight: float | None, base: Path | None) -> None:
    if weight is not None and base is None:
        raise SelectorError(
            f"--weight {weight} weighs your networks against those of --with, and there are none; "
            "give --with, or leave it out"
        )
