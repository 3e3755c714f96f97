"""The command `explain`: why the selector trusts a metric."""

import json
from pathlib import Path
from typing import Annotated

import typer

import selector
from selector.cli import options as opt
from selector.cli.bundles import Images, Network
from selector.cli.command import printed
from selector.cli.inputs import names
from selector.cli.outputs import progress_wanted
from selector.cli.plan import explanations
from selector.errors import SelectorError

RATIO = 0.25


@printed
def explain(
    images: Images,
    model: opt.OptionalModel = None,
    data: opt.OptionalData = None,
    weights: opt.Weights = None,
    weights_key: opt.WeightsKey = None,
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
    selector_folder: opt.SelectorFolder = None,
    ignore: opt.Ignore = None,
    as_json: opt.Json = False,
) -> str:
    """Say why the selector trusts a metric: the reasons, how sure it is, and the runner-up."""
    if plan is not None:
        typed = {
            "--model": model,
            "--data": data,
            "--weights": weights,
            "--weights-key": weights_key,
            "--ratio": ratio,
            "--selector": selector_folder,
            "--ignore": ignore,
        }
        unused = [name for name, value in typed.items() if value is not None] + images.typed
        if unused:
            raise SelectorError(f"{unused[0]} does nothing with --plan; leave it out")
        explained = selector.Plan.load(plan)
    else:
        if model is None or data is None:
            raise SelectorError("explain needs --model and --data, or --plan with a saved plan")
        folder = selector_folder
        asked = None if folder is None else selector.SaliencySelector.load(folder)
        loaded = Network(model=model, weights=weights, weights_key=weights_key).read()
        explained = selector.choose(
            loaded.model,
            images.read(data, loaded.preparation)[0],
            selector=asked,
            ignore=() if ignore is None else names(ignore, "--ignore"),
            ratio=RATIO if ratio is None else ratio,
            progress=progress_wanted(),
        )
    found = explanations(explained, group)
    if as_json:
        return json.dumps({n: json.loads(one.to_json()) for n, one in found.items()}, indent=1)
    return "\n\n".join(f"{name}: {one}" for name, one in found.items())
