"""Sets that the channels left can stand in for: by refitting, or by spanning the same space."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from selector.saliency.proposals.covariance import View, in_precision, merged, views_of
from selector.saliency.proposals.elimination import PANEL, PANELS, eliminate, eliminate_together
from selector.statistics.channel_statistics import Signals

TOGETHER = 2**21
"""Numbers in the matrices of the groups that are worked on at once."""


def reconstruction(signals: Signals, count: int) -> list[int]:
    r"""Greedy elimination by the error of the consumers' outputs once the rest is refitted.

    .. math:: \min_{W'} \mathbb{E} \lVert W_S^T x_S - W'^T (x_K, 1) \rVert^2

    for the set S that goes and the channels K that are left, as a share of the variance of each
    consumer's outputs, summed over consumers. No labels are read.

    Source:
        OBS (NIPS 1992) for channels, as OSSCAR (arXiv 2403.12983) and ZipLM (arXiv 2302.04089).
    """
    return eliminate(merged(views_of(signals)), signals.channels, count)


def reconstruction_fisher(signals: Signals, count: int) -> list[int]:
    r"""The same weighted by the gradients at the outputs: the loss change to second order.

    .. math:: \tfrac{1}{2} \min_{W'} \mathbb{E}_x \mathbb{E}_g \big( g^T (W_S^T x_S - W'^T (x_K, 1))
        \big)^2

    with inputs x and gradients g of the outputs taken for independent, as in K-FAC. The gradients
    are those of the network's own softened outputs, so that no labels are read. In nats of these,
    summed over consumers.

    Source:
        arXiv 1503.05671 (K-FAC); for channels, arXiv 1905.05934 (EigenDamage).
    """
    views = merged(views_of(signals, by_gradient=True))
    return eliminate(views, signals.channels, count)


def column_subset(signals: Signals, count: int) -> list[int]:
    r"""What pivoted Cholesky does not take up of the inputs' covariance.

    Channels are kept one by one, the one with the most variance that those kept before do not
    explain. The covariance is that of each channel times the norm of the weights that read it, as
    a share of the consumer's outputs, summed over consumers and a channel's inputs.

    Source:
        Column subset selection: arXiv 0812.4293; pivoted Cholesky: Higham, 1990.
    """
    return column_subsets([signals])[0][:count]


def reconstructions(signals: Sequence[Signals]) -> list[list[int]]:
    """`reconstruction` of several groups at once: whole orders, but for the last channel."""
    return _eliminated(signals, [merged(views_of(one)) for one in signals])


def reconstructions_fisher(signals: Sequence[Signals]) -> list[list[int]]:
    """The same of `reconstruction_fisher`."""
    return _eliminated(signals, [merged(views_of(one, by_gradient=True)) for one in signals])


def _eliminated(signals: Sequence[Signals], views: Sequence[Sequence[View]]) -> list[list[int]]:
    shapes = [
        (s.channels, *(len(view.inputs) for view in own))
        for s, own in zip(signals, views, strict=True)
    ]

    def orders(numbers: Sequence[int]) -> list[list[int]]:
        channels, *_ = shapes[numbers[0]]
        return eliminate_together([views[number] for number in numbers], channels, channels - 1)

    return _by_shape(shapes, orders)


def column_subsets(signals: Sequence[Signals]) -> list[list[int]]:
    """`column_subset` of several groups at once."""
    tables = [_weighed(one) for one in signals]

    def orders(numbers: Sequence[int]) -> list[list[int]]:
        kept = pivots(torch.stack([tables[number] for number in numbers]))
        return [order[:0:-1] for order in kept]

    return _by_shape([table.shape for table in tables], orders)


def _by_shape(
    shapes: Sequence[Sequence[int]], orders: Callable[[Sequence[int]], list[list[int]]]
) -> list[list[int]]:
    """Orders of groups of the same shape at once, as many as fit in memory with ease.

    Args:
        shapes: Of every group.
        orders: Numbers of groups with the same shape -> their orders.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, shape in enumerate(shapes):
        alike.setdefault(tuple(shape), []).append(number)
    found: dict[int, list[int]] = {}
    for shape, numbers in alike.items():
        most = max(1, TOGETHER // sum(inputs**2 for inputs in shape))
        for start in range(0, len(numbers), most):
            some = numbers[start : start + most]
            found.update(zip(some, orders(some), strict=True))
    return [found[number] for number in range(len(shapes))]


def _weighed(signals: Signals) -> Tensor:
    """Covariance of the channels as their consumers weigh them, shape (channels, channels)."""
    channels = signals.channels
    total = torch.zeros(channels, channels, dtype=torch.float64)
    for view in views_of(signals):
        norms = view.importance.sqrt()
        weighted = view.inputs * torch.outer(norms, norms)
        apart = weighted.reshape(channels, len(norms) // channels, channels, -1)
        total += apart.diagonal(dim1=1, dim2=3).sum(2)
    return in_precision(total)


def pivots(matrices: Tensor) -> list[list[int]]:
    """The pivots of the Cholesky decompositions; where nothing is left, the largest first.

    Args:
        matrices: Shape (matrices, channels, channels); overwritten.
    """
    number, channels, _ = matrices.shape
    every = torch.arange(number)
    own = matrices.diagonal(dim1=1, dim2=2).clone()
    left, last = own.clone(), own - own.amax(1, keepdim=True) - 1
    gone = torch.zeros_like(own, dtype=torch.bool)
    # What rounding leaves, with a thousand channels or so.
    nothing = 1e-9 if own.dtype == torch.float64 else 1e-4
    panel = max(PANEL, channels // PANELS)
    columns = own.new_empty(number, panel, channels)
    found: list[Tensor] = []
    while len(found) < channels:
        steps = min(panel, channels - len(found))
        for step in range(steps):
            spent = left <= nothing * own
            value = torch.where(spent, last, left).masked_fill_(gone, -torch.inf)
            pivot = value.argmax(1)
            before = columns[every, :step, pivot][:, None] @ columns[:, :step]
            scale = torch.where(spent, torch.inf, left)[every, pivot].sqrt()
            columns[:, step] = (matrices[every, pivot] - before[:, 0]) / scale[:, None]
            left.addcmul_(columns[:, step], columns[:, step], value=-1)
            gone[every, pivot] = True
            found.append(pivot)
        if len(found) < channels:
            matrices.baddbmm_(columns.mT, columns, alpha=-1)
    return torch.stack(found, 1).tolist()
