"""The commands after pruning: eval, export."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import selector
from selector.cli import options as opt
from selector.cli.bundles import Images, Network, parameters_of
from selector.cli.command import printed
from selector.cli.dry import would_write
from selector.cli.inspection import Shape, made_up_images
from selector.cli.outputs import check_files, tell_written
from selector.errors import SelectorError
from selector.tables import count_text, text_table

FEW = 8
"""Images in a forward pass that is timed."""


@printed
def evaluate_network(
    network: Network,
    data: opt.Data,
    images: Images,
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Time forward passes, too.")
    ] = True,
    as_json: opt.Json = False,
) -> str:
    """Say how a network does on some images: loss, accuracy, multiply-accumulates, speed."""
    import torch

    from selector.data.calibration import Calibration
    from selector.data.forward import call, device_of, evaluating, probe_inputs
    from selector.network.costs import count_costs
    from selector.network.latency import median_seconds

    loaded = network.read()
    calibration = Calibration(images.read(data, loaded.preparation)[0])
    if calibration.unlabelled:
        raise SelectorError(
            f"{data} has no labels, and losses and accuracies need them; see --label-column"
        )
    found = selector.evaluate(loaded.model, calibration)
    few = probe_inputs(loaded.model, calibration, FEW)
    costs = count_costs(loaded.model, few)
    rows: dict[str, float | int | None] = {
        "images": found.images,
        "loss": found.loss,
        "accuracy": found.accuracy,
        "macs": costs.total("macs"),
        "parameters": parameters_of(loaded.model),
    }
    if latency:
        with torch.no_grad(), evaluating(loaded.model):
            device = device_of(loaded.model)
            seconds = median_seconds(lambda: call(loaded.model, few), device)
        rows["seconds"] = seconds
    if as_json:
        return json.dumps(rows)
    texts = [
        ["images", f"{found.images}"],
        ["loss", f"{found.loss:.4f}"],
        ["accuracy", "-" if found.accuracy is None else f"{found.accuracy:.2%}"],
        ["MACs an image", count_text(costs.total("macs"))],
        ["parameters", count_text(parameters_of(loaded.model))],
        *([[f"{FEW} images take", f"{1e3 * seconds:.2f} ms"]] if latency else []),
    ]
    return text_table([network.model, ""], texts)


@printed
def export(
    network: Network,
    output: Annotated[Path, typer.Option(help="NAME.onnx, or NAME.pt2 for torch.export.")],
    images: Images,
    data: opt.OptionalData = None,
    shape: Shape = None,
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
) -> str:
    """Write a network as ONNX or for torch.export, and check its outputs against PyTorch's.

    The check uses images of --data, or else noise.
    """
    from torch import Tensor

    from selector.data.forward import probe_inputs
    from selector.network.export import export as export_network

    check_files([output], [network.weights, data])
    if data is None and images.typed and images.typed != ["--size"]:
        raise SelectorError(f"{images.typed[0]} does nothing without --data; leave it out")
    loaded = network.read()
    if data is None:
        inputs = made_up_images(loaded, shape, images.size, FEW)
    elif shape is not None:
        raise SelectorError("--input does nothing with --data, whose images have a shape")
    else:
        batches, _ = images.read(data, loaded.preparation)
        found = probe_inputs(loaded.model, batches, FEW)
        if not isinstance(found, Tensor):
            raise SelectorError("export takes networks of one input; these batches hold several")
        inputs = found
    if dry_run:
        return would_write([output])
    exported = export_network(loaded.model, output, inputs)
    tell_written(output)
    return json.dumps(asdict(exported)) if as_json else str(exported)
