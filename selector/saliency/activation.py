"""Saliencies of activations, where removal acts, at the consumers' inputs: a forward pass.

Rescaling a channel (see `saliency/weight.py`) scales its activations, and so every score here but
`apoz`, `wanda` and `hrank`.
"""

import torch
from torch import Tensor

from selector.statistics.channel_statistics import Signals


def mean_activation(signals: Signals) -> Tensor:
    r"""Mean absolute activation at the consumers' inputs, over images and positions.

    .. math:: s_c = \frac{1}{N X} \sum_n \sum_x |a_{ncx}|

    Source:
        Molchanov et al., arXiv 1611.06440, section 2.2; absolute as in arXiv 2004.03376.
    """
    return signals.activation.absolute / signals.at_consumers.positions


def activation_rms(signals: Signals) -> Tensor:
    r"""Root mean square of the activation at the consumers' inputs.

    .. math:: s_c = \Big(\frac{1}{N X} \sum_n \sum_x a_{ncx}^2\Big)^{1/2}

    Source:
        L2 reduction of activations in the grammar of arXiv 1906.04675.
    """
    return (signals.activation.square / signals.at_consumers.positions).sqrt()


def activation_spread(signals: Signals) -> Tensor:
    r"""Standard deviation of the activation, over images and positions: constant ones go first.

    .. math:: s_c = \Big(\frac{1}{N X} \sum_n \sum_x a_{ncx}^2 - \bar a_c^2\Big)^{1/2}

    Source:
        Polyak and Wolf, Channel-Level Acceleration of Deep Face Representations, IEEE Access 2015.
    """
    positions = signals.at_consumers.positions
    mean = signals.activation.sum / positions
    return (signals.activation.square / positions - mean.square()).clamp_min(0).sqrt()


def apoz(signals: Signals) -> Tensor:
    r"""Share of positions that are not zero: one minus the average percentage of zeros (APoZ).

    .. math:: s_c = \frac{1}{N X} \sum_n \sum_x [a_{ncx} > 0]

    After ReLU this is the paper's figure; for other activations it is the share above zero.
    Rescaling leaves it unchanged.

    Source:
        Hu et al., Network Trimming, arXiv 1607.03250, Eq. 1.
    """
    return signals.positive_share


def wanda(signals: Signals) -> Tensor:
    r"""Absolute weights of the consumers times the norm of what they read.

    .. math:: s_c = \sum_\ell \sum_{i \in c} \lVert a^\ell_i \rVert_2 \sum_o |w^\ell_{oi}|

    The norm is over positions, root mean square over images; i runs over the inputs that belong to
    the channel (several after a flattened map). Rescaling the channel leaves it unchanged;
    rescaling the channels that its consumers write does not.

    Source:
        Sun et al., A Simple and Effective Pruning Approach for LLMs, arXiv 2306.11695, Eq. 1,
        summed over the weights that a channel feeds.
    """
    parts = [
        (side.weight.double().abs().sum(2) * side.mean_square.sqrt()).sum(1)
        for side in signals.consumer_inputs
    ]
    return torch.stack(parts).sum(0)


def hrank(signals: Signals) -> Tensor:
    r"""Mean over images of the rank of the channel's map, summed over consumers.

    .. math:: s_c = \frac{1}{N} \sum_n \sum_\ell \mathrm{rank}(A^\ell_{nc})

    Expensive: a decomposition for every map, in single precision. Inputs of a linear layer are maps
    of one row; several inputs that one layer has of a channel are one map, one below the other.
    Rescaling leaves it unchanged.

    Source:
        Lin et al., HRank, arXiv 2002.10179, Eq. 6.
    """
    return signals.statistic("rank")


def chip(signals: Signals) -> Tensor:
    r"""Channel independence: fall of the maps' nuclear norm when one channel is set to zero.

    .. math:: s_c = \frac{1}{N} \sum_n
        \big( \lVert A_n \rVert_* - \lVert M_c \odot A_n \rVert_* \big)

    A has one row a channel: its maps at all consumers, flattened. Expensive: an eigenvalue problem
    for every image and channel.

    Source:
        Sui et al., CHIP: CHannel Independence-based Pruning, arXiv 2110.13981, Eq. 4.
    """
    return signals.statistic("independence")
