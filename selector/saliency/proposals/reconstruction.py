"""Sets that the channels left can stand in for: by refitting, or by spanning the same space."""

import torch

from selector.saliency.proposals.covariance import views_of
from selector.saliency.proposals.elimination import eliminate
from selector.statistics.channel_statistics import Signals


def reconstruction(signals: Signals, count: int) -> list[int]:
    r"""Greedy elimination by the error of the consumers' outputs once the rest is refitted.

    .. math:: \min_{W'} \mathbb{E} \lVert W_S^T x_S - W'^T (x_K, 1) \rVert^2

    for the set S that goes and the channels K that are left, as a share of the variance of each
    consumer's outputs, summed over consumers. No labels are read.

    Source:
        OBS (NIPS 1992) for channels, as OSSCAR (arXiv 2403.12983) and ZipLM (arXiv 2302.04089).
    """
    return eliminate(views_of(signals), signals.channels, count)


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
    return eliminate(views_of(signals, by_gradient=True), signals.channels, count)


def column_subset(signals: Signals, count: int) -> list[int]:
    r"""What pivoted Cholesky does not take up of the inputs' covariance.

    Channels are kept one by one, the one with the most variance that those kept before do not
    explain. The covariance is that of each channel times the norm of the weights that read it, as
    a share of the consumer's outputs, summed over consumers and a channel's inputs.

    Source:
        Column subset selection: arXiv 0812.4293; pivoted Cholesky: Higham, 1990.
    """
    channels = signals.channels
    total = torch.zeros(channels, channels, dtype=torch.float64)
    for view in views_of(signals):
        norms = view.importance.sqrt()
        weighted = view.inputs * torch.outer(norms, norms)
        apart = weighted.reshape(channels, len(norms) // channels, channels, -1)
        total += apart.diagonal(dim1=1, dim2=3).sum(2)
    return _pivots(total, channels)[: -count - 1 : -1]


def _pivots(matrix: torch.Tensor, count: int) -> list[int]:
    """The first pivots of the Cholesky decomposition; where nothing is left, the largest first."""
    own = matrix.diagonal()
    left = own.clone()
    columns = matrix.new_zeros(len(matrix), count)
    pivots: list[int] = []
    for step in range(count):
        spent = left <= 1e-9 * own
        value = torch.where(spent, own - own.max() - 1, left)
        value[pivots] = -torch.inf
        pivot = int(value.argmax())
        pivots.append(pivot)
        if not spent[pivot]:
            column = matrix[:, pivot] - columns[:, :step] @ columns[pivot, :step]
            columns[:, step] = column / left[pivot].sqrt()
            left = left - columns[:, step].square()
    return pivots
