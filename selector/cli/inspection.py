"""The command `inspect`: what can be pruned in a network, without any data."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

import selector
from selector.cli import options as opt
from selector.cli.bundles import Network
from selector.cli.command import printed
from selector.cli.inputs import whole_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from selector.cli.models import Loaded

SIDE = 224
"""Pixels of a side, where neither the user nor the network's library says."""

Shape = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="C,H,W",
        help="Shape of one image, as in 3,32,32; by default what the network's library says, else "
        f"{SIDE} pixels a side.",
        rich_help_panel="The network",
    ),
]


@printed
def inspect(
    network: Network, shape: Shape = None, size: opt.Size = None, as_json: opt.Json = False
) -> str:
    """List the groups of channels that can be pruned, what each costs, and what cannot, and why."""
    loaded = network.read(weights_needed=False)
    groups = selector.find_groups(loaded.model, made_up_images(loaded, shape, size))
    if not as_json:
        return f"{network.model}\n{groups}"
    costs = groups.costs
    found = {
        "model": network.model,
        "macs": costs.total("macs"),
        "parameters": costs.total("parameters"),
        "groups": groups.rows(),
        "refused": dict(groups.refused),
    }
    return json.dumps(found, indent=1)


def made_up_images(
    loaded: "Loaded", shape: str | None, size: int | None, count: int = 2
) -> "Tensor":
    """Images of noise in the shape that the network takes.

    Args:
        loaded: The network.
        shape: Of one image, as typed.
        size: Pixels of a side, as typed.
        count: Number of images.

    Raises:
        SelectorError: No shape.
    """
    import torch

    from selector.data.forward import device_of

    side = size or loaded.preparation.size or SIDE
    sizes: tuple[int, ...] = (loaded.preparation.channels, side, side)
    if shape is not None:
        sizes = whole_numbers(shape, "--input")
    noise = torch.randn(count, *sizes, generator=torch.Generator().manual_seed(0))
    return noise.to(device_of(loaded.model))
