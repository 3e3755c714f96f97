"""Saliencies of second order: curvature of the loss, by the Gauss-Newton matrix or its product.

The Gauss-Newton diagonal is estimated with one set of random signs an image (`curvature`); the
signs come from the generator's seed, so the same images give the same scores. Rescaling a channel
leaves `obd`, `gauss_newton` and `second_taylor_gate` unchanged, and not `grasp`.
"""

from torch import Tensor

from selector.statistics.channel_statistics import Signals


def obd(signals: Signals) -> Tensor:
    r"""Optimal Brain Damage: half the squared weights times their curvature, summed over a filter.

    .. math:: s_c = \frac{1}{2} \sum_i w_{ci}^2 h_{ci}

    h is the diagonal of the Gauss-Newton matrix of the mean loss; a layer that is called several
    times counts as several layers. In nats.

    Source:
        LeCun et al., Optimal Brain Damage, NIPS 1989; Gauss-Newton as in arXiv 1906.04675.
    """
    return signals.weight_moments["gauss_newton"].sum


def gauss_newton(signals: Signals) -> Tensor:
    r"""Half the curvature of the loss along a gate on the channel.

    .. math:: s_c = \frac{1}{2N} \sum_n \Big( \sum_x a_{ncx}\, r_{ncx} \Big)^2

    r is the gradient of the projected outputs, so that the mean over signs is the Gauss-Newton
    diagonal of a gate on the whole channel, with all interactions between positions and consumers.
    In nats; `fisher` with the model's own predictions in place of the labels.

    Source:
        The Gauss-Newton form of Theis et al., arXiv 1801.05787, Eq. 5.
    """
    return signals.at_consumers["projected"].square_of_sum / 2


def second_taylor_gate(signals: Signals) -> Tensor:
    r"""Estimated loss change when a gate on the channel closes, to second order.

    .. math:: s_c = \frac{1}{N} \sum_n \Big( - \sum_x a_{ncx}\, g_{ncx}
        + \frac{1}{2} \Big( \sum_x a_{ncx}\, r_{ncx} \Big)^2 \Big)

    In nats, and signed: a channel whose removal should lower the loss is below zero.

    Source:
        Second-order Taylor of arXiv 1906.04675 for a gate; curvature as in `gauss_newton`.
    """
    return gauss_newton(signals) - signals.taylor.sum


def grasp(signals: Signals) -> Tensor:
    r"""Gradient signal preservation: what a filter's weights do for the norm of the gradient.

    .. math:: s_c = \sum_i w_{ci} (H \bar g)_{ci}

    H and g are those of the mean loss in the filters of all producers of the scored groups. The
    negative of the paper's score, whose highest are pruned. Signed: below zero are channels
    whose removal would raise the gradient's norm. Made for networks before training.

    Source:
        Wang et al., Picking Winning Tickets Before Training, arXiv 2002.07376, Eq. 8.
    """
    assert signals.hessian_gradients is not None
    return (signals.weight * signals.hessian_gradients.double()).sum(1)
