"""The statistics that the metrics of the table read, declared as anyone's are."""

from collections.abc import Sequence

import torch
from torch import Tensor

from selector.statistics.reductions import CHUNK
from selector.statistics.statistic import GroupBatch, LayerCall, register_statistic


@register_statistic("positive", asked_by={"forward"})
def positive(call: LayerCall) -> Tensor:
    """How many positions are above zero, summed over images, shape (width,), float64."""
    values = call.values
    out = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
    step = max(1, CHUNK.get(values.device.type, 2**26) // max(1, values[0].numel()))
    for chunk in torch.split(values, step):
        # Written as numbers, in the order of memory: summing booleans is several times slower.
        above = torch.gt(chunk, 0, out=torch.empty_like(chunk, dtype=torch.float32))
        out += above.sum(-1).sum(0)
    return out


@register_statistic("squares", by_input=True, asked_by={"forward"})
def squares(call: LayerCall) -> Tensor:
    """Sum of squares of each input of a consumer, summed over images, shape (width,)."""
    return call.sums[2].sum(0)


@register_statistic("energy", requires="backward", of="batch", asked_by={"backward"})
def energy(batch: GroupBatch) -> Tensor:
    """Norm of a channel's maps times that of their gradients, summed over images, (channels,)."""
    found = batch.consumers.quantities
    return (found["value"][2] * found["gradient"][2]).sqrt().sum(0)


@register_statistic("connection", requires="backward", of="batch", asked_by={"backward"})
def connection(batch: GroupBatch) -> Tensor:
    """Squared effect of all weights of a channel, producers' and consumers', summed over images.

    A producer's weights times their gradients are (output - bias) x gradient summed over positions;
    a consumer's are activation x gradient.
    """
    return (batch.producers.total("effect") + batch.consumers.total("taylor")).square().sum(0)


@register_statistic("rank", of="batch", whole_maps=True, expensive=True, asked_by={"maps"})
def rank(batch: GroupBatch) -> Tensor:
    """Ranks of a channel's maps, summed over images and consumers, shape (channels,), float64."""
    maps = batch.consumers.maps
    ranks = [torch.linalg.matrix_rank(planes.float()).double().sum(0) for planes in maps]
    return torch.stack(ranks).sum(0)


@register_statistic("independence", of="batch", whole_maps=True, expensive=True, asked_by={"maps"})
def independence(batch: GroupBatch) -> Tensor:
    """Fall of the nuclear norm when one channel is set to zero, summed over images.

    The matrix of an image has one row for each channel: its maps at all consumers, flattened.
    Nuclear norms come from eigenvalues of whichever Gram matrix is smaller, so the work is
    channels x min(channels, positions)^3 for each image.

    Returns:
        Shape (channels,), float64.
    """
    rows = torch.cat([planes.double().flatten(2) for planes in batch.consumers.maps], 2)
    return torch.stack([_fall_of_nuclear_norm(matrix) for matrix in rows]).sum(0)


def _fall_of_nuclear_norm(matrix: Tensor) -> Tensor:
    channels, positions = matrix.shape
    whole = torch.linalg.matrix_norm(matrix, "nuc")
    if positions < channels:
        gram = matrix.T @ matrix
        grams = (gram - torch.outer(row, row) for row in matrix)
    else:
        gram = matrix @ matrix.T
        grams = (_without(gram, channel) for channel in range(channels))
    left = [torch.linalg.eigvalsh(g).clamp_min(0).sqrt().sum() for g in grams]
    return torch.sub(whole, torch.stack(left))


def _without(gram: Tensor, channel: int) -> Tensor:
    kept: Sequence[int] = [other for other in range(len(gram)) if other != channel]
    index = torch.tensor(kept, device=gram.device)
    return gram.index_select(0, index).index_select(1, index)
