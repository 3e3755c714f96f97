"""The commands about the selector itself: fit, evaluate."""

import json
from pathlib import Path
from typing import Annotated

import typer

import selector
from selector.cli import options as opt
from selector.cli.command import printed
from selector.cli.outputs import check_folder, progress_wanted, tell_written
from selector.errors import SelectorError

SELECTOR_FILE = "selector.json"
MOST_CANDIDATES = 300_000
"""That `fit` learns from, of one folder: some six times as many as the shipped selector."""

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
def fit(
    records: Annotated[Path, typer.Option(help="Folder of records, of two networks or more.")],
    output: Annotated[Path, typer.Option(help="Folder for the selector.")],
    base: BaseRecords = None,
    weight: Weight = None,
    most: Annotated[
        int,
        typer.Option(
            "--most-candidates",
            min=1,
            help="Where there are more, whole decisions are drawn from every network.",
        ),
    ] = MOST_CANDIDATES,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the selector that is there.")
    ] = False,
    as_json: opt.Json = False,
) -> str:
    """Fit a selector on your own records, alone or together with others."""
    _check_selector_folder(output, overwrite)
    _check_weight(weight, base)
    own = selector.Records.load(records, most=most)
    mine = [provenance.network for provenance in own.own().networks]
    everything = own if base is None else own + selector.Records.load(base, most=most)
    measured = everything.own()
    foreign = [p.network for p in everything.of_origin("foreign").networks]
    learnt = selector.SaliencySelector().fit(
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
    selector_folder: opt.SelectorFolder = None,
    as_json: opt.Json = False,
) -> str:
    """Say whether retraining helps, on your own networks, each left out in turn."""
    _check_weight(weight, base)
    folder = selector_folder
    given = None if folder is None else selector.SaliencySelector.load(folder)
    found = selector.compare(
        selector.Records.load(records),
        base=None if base is None else selector.Records.load(base),
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


def _check_selector_folder(folder: Path, overwrite: bool) -> None:
    """Make sure that a selector can be saved in a folder.

    Raises:
        SelectorError: It holds other things, or a selector that was not to be overwritten.
    """
    check_folder(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / SELECTOR_FILE).is_file():
        raise SelectorError(f"{folder} is not empty and holds no selector; choose another --output")
    if not overwrite:
        raise SelectorError(f"{folder} holds a selector; give --overwrite to replace it")
