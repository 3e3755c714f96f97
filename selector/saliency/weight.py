"""Saliencies of weights alone: no data is read.

All follow a channel's filters in all the producers of its group, laid side by side, or the weights
with which the consumers read it. Function-preserving rescaling (a filter times a constant, its
consumers' weights over it) changes all but `synflow`.
"""

import torch
from torch import Tensor

from selector.statistics.channel_statistics import Signals


def l1(signals: Signals) -> Tensor:
    r"""Size of a channel's filters: sum of absolute weights, over all producers.

    .. math:: s_c = \sum_i |w_{ci}|

    Source:
        Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710.
    """
    return signals.weight_moments["value"].absolute


def l2(signals: Signals) -> Tensor:
    r"""Euclidean norm of a channel's filters, over all producers.

    .. math:: s_c = \big(\sum_i w_{ci}^2\big)^{1/2}

    Source:
        He et al., Soft Filter Pruning, arXiv 1808.06866.
    """
    return signals.weight_moments["value"].norm


def consumer_norm(signals: Signals) -> Tensor:
    r"""Sum of the absolute weights with which all consumers read the channel.

    .. math:: s_c = \sum_\ell \sum_o |w^\ell_{oc}|

    Source:
        The consumers' part of the group norm of Fang et al., DepGraph, arXiv 2301.12900, Eq. 4.
    """
    parts = [side.weight.double().abs().sum((1, 2)) for side in signals.consumer_inputs]
    return torch.stack(parts).sum(0)


def group_l2(signals: Signals) -> Tensor:
    r"""Euclidean norm of all weights that go with the channel, producers' and consumers'.

    .. math:: s_c = \big(\sum_i w_{ci}^2 + \sum_\ell \sum_o (w^\ell_{oc})^2\big)^{1/2}

    Source:
        Fang et al., DepGraph, arXiv 2301.12900, Eq. 4.
    """
    squares = [side.weight.double().square().sum((1, 2)) for side in signals.consumer_inputs]
    return (signals.weight_moments["value"].square + torch.stack(squares).sum(0)).sqrt()


def batchnorm_scale(signals: Signals) -> Tensor:
    r"""Scale that BatchNorm gives the channel, absolute, summed over the group's BatchNorms.

    .. math:: s_c = \sum_\ell |\gamma_{\ell c}|

    Source:
        Liu et al., Network Slimming, arXiv 1708.06519.
    """
    assert signals.normalisation_scale is not None
    return signals.normalisation_scale


def fpgm(signals: Signals) -> Tensor:
    r"""Distance of a channel's filter to all the others: the replaceable ones go first.

    .. math:: s_c = \sum_j \lVert w_c - w_j \rVert_2

    Distances come from one matrix product; see `distances_of`.

    Source:
        He et al., Filter Pruning via Geometric Median, arXiv 1811.00250, Eq. 3.
    """
    return signals.filter_distances.sum(1)


def whc(signals: Signals) -> Tensor:
    r"""Norm of the filter times its weighted dissimilarity to all the others.

    .. math:: s_c = \lVert w_c \rVert \sum_{j \ne c} \lVert w_j \rVert (1 - |\cos(w_c, w_j)|)

    Source:
        Chen et al., WHC: Weighted Hybrid Criterion, arXiv 2302.08185, Eq. 4.
    """
    products = signals.filter_products
    norms = products.diagonal().clamp_min(0).sqrt()
    # |w_c| |w_j| (1 - |cos|) = |w_c| |w_j| - |w_c w_j|: nothing is divided by a norm of zero.
    terms = norms[:, None] * norms[None, :] - products.abs()
    return terms.clamp_min(0).fill_diagonal_(0).sum(1)


def lamp(signals: Signals) -> Tensor:
    r"""Squared norm over that of all channels which are not smaller: comparable across layers.

    .. math:: s_c = \frac{\lVert w_c \rVert^2}{\sum_{j: \lVert w_j \rVert \ge \lVert w_c \rVert}
        \lVert w_j \rVert^2}

    Source:
        Lee et al., Layer-Adaptive Sparsity, arXiv 2010.07611, Eq. 3, with filters for weights.
    """
    squares = signals.weight_moments["value"].square
    at_least = (squares[None, :] >= squares[:, None]).double() @ squares
    return squares / torch.where(at_least > 0, at_least, torch.ones_like(at_least))


def synflow(signals: Signals) -> Tensor:
    r"""Flow of absolute weights through the channel's filters: no data, on all-ones input.

    .. math:: s_c = \sum_i |w_{ci}| \frac{\partial R}{\partial |w_{ci}|}

    R is the sum of the outputs of the network with absolute weights. Rescaling leaves it unchanged.

    Source:
        Tanaka et al., Pruning without any Data, arXiv 2006.05467, Eq. 3, summed over a filter.
    """
    assert signals.flows is not None
    return signals.flows.double().sum(1)


def random(signals: Signals) -> Tensor:
    """Uniform random numbers: the floor that any metric must beat.

    Source:
        Mittal et al., Studying the Plasticity of Random Pruning, arXiv 1801.10447.
    """
    return signals.random
