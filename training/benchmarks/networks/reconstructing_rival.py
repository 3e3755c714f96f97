"""A rival that reconstructs: channels by the lasso, what reads them refitted, layer by layer.

Channel pruning as its paper writes it, for any network that our groups cut: of a group the channels
that the lasso keeps of its consumers' outputs, then every consumer refitted by least squares, in
forward order, on what the pruned network gives it, to the unpruned network's outputs. No ridge, no
held-out images, no BatchNorm statistics on the way, and layers that lost no inputs stay as they
are: this is what a repair of the whole network adds to.

Source:
    He et al., arXiv 1707.06168; AIMET's channel pruning is of this kind.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.linear_model import lars_path_gram
from torch import Tensor, nn

from selector.data.batches import Batches
from selector.data.forward import call, evaluating, read
from selector.network.batchnorm import recalibrate_batchnorm
from selector.network.copying import copy_of
from selector.network.tracing import find_groups
from selector.planning.choose import choose
from selector.planning.plan import Plan
from selector.pruning.apply import FineTune, apply_plan
from selector.pruning.merge import combined
from selector.repair.correspondence import kept_after_cuts
from selector.repair.patches import (
    input_rows,
    output_rows,
    rows_of_outputs,
    set_weight_matrices,
)
from selector.saliency.proposals.covariance import views_of
from selector.saliency.proposals.registry import PROPOSALS, register_proposal
from selector.statistics.channel_statistics import Signals

NAME = "lasso"
POSITIONS = 64
"""Of each image; the paper takes ten of many more images."""


def lasso(signals: Signals, count: int) -> list[int]:
    """The channels that the lasso drops first from the sum of all channels' contributions.

    The contributions are what each channel adds to the consumers' outputs; their coefficients start
    at one and are shrunk until `count` of them are zero.
    """
    channels = signals.channels
    gram = torch.zeros(channels, channels, dtype=torch.float64)
    for view in views_of(signals):
        products = view.inputs * view.outputs
        blocks = products.reshape(channels, len(products) // channels, channels, -1)
        gram += blocks.sum((1, 3))
    own = gram.numpy() + 1e-9 * float(gram.trace()) / channels * np.eye(channels)
    _, _, path = lars_path_gram(own.sum(1), own, n_samples=1, method="lasso")
    kept = channels - count
    # From the empty set on; the first point with as many as wanted, else the strongest of the last.
    sizes = (path != 0).sum(0)
    place = int(np.argmax(sizes >= kept)) if (sizes >= kept).any() else -1
    order = np.argsort(-np.abs(path[:, place]), kind="stable")
    return sorted(int(i) for i in order[kept:])


@contextmanager
def lasso_registered() -> Iterator[None]:
    """Context in which `lasso` is a criterion."""
    register_proposal(NAME, needs="input_products", source="arXiv 1707.06168")(lasso)
    try:
        yield
    finally:
        del PROPOSALS[NAME]


def prune_and_reconstruct(
    model: nn.Module,
    batches: Batches,
    *,
    keep_macs: float,
    rounds: int,
    max_ratio: float,
    look: FineTune | None = None,
) -> tuple[nn.Module, list[Plan]]:
    """Prune a copy with even shares, in rounds, each followed by a refit of what reads the rest.

    Args:
        model: The trained network, which stays as it is; its outputs are the targets.
        batches: Calibration images.
        keep_macs: Share of the multiply-accumulates that stays at most.
        rounds: The MACs fall by the same factor in each.
        max_ratio: Largest share of a group's channels that may go.
        look: Called with the network and the number of the round after each.

    Returns:
        The pruned copy, and the plan of each round, in the channel numbers of that round.
    """
    small, plans, start = copy_of(model), list[Plan](), find_groups(model, _first(batches))
    total, left = start.costs.total("macs"), start.costs.total("macs")
    for number in range(1, rounds + 1):
        share = min(0.999, keep_macs ** (number / rounds) * total / left)
        with lasso_registered():
            plan = choose(small, batches, criterion=NAME, keep_macs=share, max_ratio=max_ratio)
        small, left = apply_plan(small, plan), plan.macs_after
        plans.append(plan)
        whole = combined(plans, start, start)
        consumers = {cut.layer for cut in whole.cuts if cut.side != "out"}
        kept = kept_after_cuts(model, whole.cuts)
        for name, layer in small.named_modules():
            if name in consumers and isinstance(layer, nn.Conv2d | nn.Linear):
                _refit(model, small, name, kept, batches)
        recalibrate_batchnorm(small, batches)
        if look is not None:
            look(small, number)
    return small, plans


def _first(batches: Batches) -> object:
    return next(iter(batches))[0]


def _refit(
    original: nn.Module,
    small: nn.Module,
    name: str,
    kept: Mapping[str, tuple[int, ...]],
    batches: Batches,
) -> None:
    """Refit one layer by least squares; one whose images give too few equations is left."""
    layer = small.get_submodule(name)
    generator = torch.Generator().manual_seed(0)
    read_rows, wanted_rows = [], []
    for inputs, _ in read(original, batches):
        _, target = _at(original, name, inputs)
        source, output = _at(small, name, inputs)
        images = len(output)
        positions = rows_of_outputs(layer, output, images)
        drawn = torch.randint(positions, (images, min(POSITIONS, positions)), generator=generator)
        order = torch.arange(images)
        target = target[:, list(kept.get(name, range(target.shape[1])))]
        read_rows.append(input_rows(layer, source, output, drawn, order))
        wanted_rows.append(output_rows(layer, target, drawn, order))
    rows, wanted = torch.cat(read_rows, 1), torch.cat(wanted_rows)
    groups, equations, unknowns = rows.shape
    if equations < 2 * unknowns:
        return
    bias = layer.bias if isinstance(layer.bias, Tensor) else None
    ones = rows.new_ones(groups, equations, 1)
    targets = wanted.reshape(equations, groups, -1).transpose(0, 1)
    solved = torch.linalg.lstsq(torch.cat([rows, ones], 2), targets, driver="gelsd").solution
    set_weight_matrices(layer, solved[:, :-1].transpose(1, 2))
    if bias is not None:
        bias.data.copy_(solved[:, -1].reshape(-1))


def _at(model: nn.Module, name: str, inputs: object) -> tuple[Tensor, Tensor]:
    """What a layer reads and gives."""
    found: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((args[0].detach(), output.detach()))

    handle = model.get_submodule(name).register_forward_hook(note)
    try:
        with torch.no_grad(), evaluating(model):
            call(model, inputs)
    finally:
        handle.remove()
    return found[0]
