"""Saliencies of activation and gradient, or weight and gradient: one forward and backward pass.

Gradients at activations are those of each image's own loss; contributions of several consumers are
summed image by image, then abs or square, then the mean over images. Gradients of weights are those
of the mean loss over all images, so that other batches give the same scores. A channel that nothing
reads scores zero. Rescaling a channel leaves every score unchanged but that of `mean_gradient`.
"""

from torch import Tensor

from selector.statistics.channel_statistics import Signals


def mean_gradient(signals: Signals) -> Tensor:
    r"""Mean over images of the absolute gradient summed over a map.

    .. math:: s_c = \frac{1}{N} \sum_n \Big| \sum_x g_{ncx} \Big|

    Rescaling the channel divides it by the factor.

    Source:
        Liu and Wu, Channel Pruning Based on Mean Gradient, Signal Processing 156 (2019); reduction
        as in arXiv 2004.03376.
    """
    return signals.gradient.absolute_of_sum


def taylor(signals: Signals) -> Tensor:
    r"""Mean size of the first-order loss change, image by image, when a channel is removed.

    .. math:: s_c = \frac{1}{N} \sum_n \Big| \sum_x a_{ncx}\, g_{ncx} \Big|

    In nats. The sum runs over positions and consumers; absolute per image, then the mean.

    Source:
        Molchanov et al., arXiv 1611.06440; reduction as in arXiv 2004.03376, Eq. 5.
    """
    return signals.taylor.absolute_of_sum


def taylor_elementwise(signals: Signals) -> Tensor:
    r"""First-order loss change with the absolute value taken at every single position.

    .. math:: s_c = \frac{1}{N} \sum_n \sum_x \big| a_{ncx}\, g_{ncx} \big|

    In nats; an upper bound of `taylor`.

    Source:
        L1 reduction of activation x gradient in the grammar of arXiv 1906.04675.
    """
    return signals.taylor.absolute


def taylor_2016(signals: Signals) -> Tensor:
    r"""Taylor as published: mean over positions, and over the norm of the layer's scores.

    .. math:: s_c = \hat s_c \Big/ \Big(\sum_j \hat s_j^2\Big)^{1/2}, \quad
        \hat s_c = \frac{1}{N} \sum_n \Big| \frac{1}{X} \sum_x a_{ncx}\, g_{ncx} \Big|

    The order of `taylor` within a group; comparable between groups.

    Source:
        Molchanov et al., arXiv 1611.06440, Eq. 8 and 9.
    """
    mean = signals.taylor.absolute_of_sum / signals.at_consumers.positions
    norm = mean.square().sum().sqrt()
    return mean / norm if float(norm) > 0 else mean


def taylor_gate(signals: Signals) -> Tensor:
    r"""Squared first-order change of the mean loss under a gate on the channel.

    .. math:: s_c = \Big( \frac{1}{N} \sum_n \sum_x a_{ncx}\, g_{ncx} \Big)^2

    In nats squared. The gradient is that of all images together, so image by image effects of
    opposite sign cancel, unlike in `fisher`.

    Source:
        Molchanov et al., arXiv 1906.10771, Eq. 10: the gate form of Taylor 2019.
    """
    return signals.taylor.sum.square()


def fisher(signals: Signals) -> Tensor:
    r"""Half the mean square, image by image, of the first-order loss change.

    .. math:: s_c = \frac{1}{2N} \sum_n \Big( \sum_x a_{ncx}\, g_{ncx} \Big)^2

    In nats where the loss is a negative log-likelihood: the diagonal of the empirical Fisher
    information of a gate on the channel, as second-order estimate of the loss change.

    Source:
        Theis et al., arXiv 1801.05787, Eq. 6.
    """
    return signals.taylor.square_of_sum / 2


def group_fisher(signals: Signals) -> Tensor:
    r"""Fisher information of the mask shared by all layers of a group, over the memory it frees.

    .. math:: s_c = \frac{1}{N M} \sum_n \Big( \sum_\ell \sum_x a^\ell_{ncx}\, g^\ell_{ncx} \Big)^2

    M is the number of values of the channel's maps at the producers' outputs. The order of `fisher`
    within a group; comparable between groups.

    Source:
        Liu et al., Group Fisher Pruning, arXiv 2108.00708, Eq. 7 and section 3.4.
    """
    return signals.taylor.square_of_sum / signals.at_producers.positions


def energy_gradient(signals: Signals) -> Tensor:
    r"""Norm of a channel's map times that of its gradient, image by image.

    .. math:: s_c = \frac{1}{N} \sum_n \Big(\sum_x a_{ncx}^2\Big)^{1/2}
        \Big(\sum_x g_{ncx}^2\Big)^{1/2}

    In nats: by Cauchy and Schwarz the largest first-order loss change that maps and gradients of
    this size can have.

    Source:
        This project; the energies that the factors of K-FAC (arXiv 1503.05671) are made of.
    """
    return signals.statistic("energy")


def weight_taylor_squared(signals: Signals) -> Tensor:
    r"""Squared first-order loss change of every weight on its own, summed over a filter.

    .. math:: s_c = \sum_i ( w_{ci}\, \bar g_{ci} )^2

    The gradient is the mean over all images, so other batches give the same scores.

    Source:
        Molchanov et al., Importance Estimation for Neural Network Pruning, arXiv 1906.10771, Eq. 8.
    """
    return signals.weight_moments["taylor"].square


def weight_taylor_joint(signals: Signals) -> Tensor:
    r"""Squared first-order loss change of a filter's weights together.

    .. math:: s_c = \Big( \sum_i w_{ci}\, \bar g_{ci} \Big)^2

    The gradient is the mean over all images.

    Source:
        Molchanov et al., arXiv 1906.10771, Eq. 9: the joint form of Taylor 2019.
    """
    return signals.weight_moments["taylor"].square_of_sum


def snip(signals: Signals) -> Tensor:
    r"""Connection sensitivity, summed over a filter.

    .. math:: s_c = \sum_i | w_{ci}\, \bar g_{ci} |

    The gradient is the mean over all images; the paper's division by the total changes no order.

    Source:
        Lee et al., SNIP, arXiv 1810.02340, Eq. 6, reduced to channels.
    """
    return signals.weight_moments["taylor"].absolute


def jacobian(signals: Signals) -> Tensor:
    r"""Mean square, image by image, of the first-order effect of all weights of a channel.

    .. math:: s_c = \frac{1}{N} \sum_n \Big( \sum_i w_{ci}\, g_{nci}
        + \sum_\ell \sum_o w^\ell_{oc}\, g^\ell_{noc} \Big)^2

    Producers' filters and the consumers' weights that read them, with the interactions between all
    of them (w^T J^T J w). The first sum is that of (output - bias) x gradient at the producers, the
    second that of activation x gradient at the consumers, so that no image's gradient of the
    weights is ever computed.

    Source:
        Chen et al., Optimal Brain Connection, arXiv 2508.05521: the Jacobian criterion.
    """
    return signals.statistic("connection")
