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
    from torch import Tensor, nn

    from selector.cli.models import Loaded
    from selector.network.prunable import Groups

SIDE = 224
"""Pixels of a side, where neither the user nor the network's library says."""
SMALL_SIDE = 64
"""Pixels of a side that nearly every network takes."""

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
    groups = _groups(loaded.model, made_up_images(loaded, shape, size))
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


def _groups(model: "nn.Module", images: "Tensor") -> "Groups":
    """The groups, found on small images where the network takes them, which is much faster.

    Which channels belong together is the same for images of any size; what they cost is not.
    """
    from selector.network.costs import count_costs

    if min(images.shape[2:], default=0) > SMALL_SIDE and images.ndim == 4:
        try:
            groups = selector.find_groups(model, images[:, :, :SMALL_SIDE, :SMALL_SIDE])
            return groups.with_costs(count_costs(model, images[:1]))
        except selector.SelectorError:  # A network of images of one size.
            pass
    return selector.find_groups(model, images)


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
