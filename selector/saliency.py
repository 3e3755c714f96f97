"""Saliency metrics as values, and the table of them: `METRICS: name -> metric`.

A metric is a function of a group's signals that gives one score per channel; the lowest go first.
The order of reduction decides what a metric means, so every docstring writes it out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from selector.errors import SelectorError
from selector.signals import Signals

Need = Literal["weights", "normalisation", "forward", "backward"]


@dataclass(frozen=True)
class Metric:
    """A saliency metric: what it computes, what it needs, and where it comes from."""

    name: str
    score: Callable[[Signals], Tensor]
    """Signals -> scores of shape (channels,), float64; the lowest are pruned first."""
    needs: Need
    source: str
    arm: bool = True
    """Whether the selector may choose it; `random` is measured as a baseline only."""

    def applies(self, signals: Signals) -> bool:
        """Whether the group has what the metric needs."""
        return self.needs != "normalisation" or signals.normalisation_scale is not None

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (self.score.__doc__ or "").strip().splitlines()[0]


def l1(signals: Signals) -> Tensor:
    r"""Size of a channel's filters: sum of absolute weights, over all producers.

    .. math:: s_c = \sum_i |w_{ci}|

    Source:
        Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710.
    """
    return signals.weight.abs().sum(1)


def l2(signals: Signals) -> Tensor:
    r"""Euclidean norm of a channel's filters, over all producers.

    .. math:: s_c = \big(\sum_i w_{ci}^2\big)^{1/2}

    Source:
        He et al., Soft Filter Pruning, arXiv 1808.06866.
    """
    return signals.weight.square().sum(1).sqrt()


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

    Source:
        He et al., Filter Pruning via Geometric Median, arXiv 1811.00250, Eq. 3.
    """
    weight = signals.weight
    return torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def mean_activation(signals: Signals) -> Tensor:
    r"""Mean absolute activation at the consumers' inputs, over images and positions.

    .. math:: s_c = \frac{1}{N X} \sum_n \sum_x |a_{ncx}|

    Source:
        Molchanov et al., arXiv 1611.06440, section 2.2; absolute as in arXiv 2004.03376.
    """
    return signals.activation.absolute / signals.positions


def activation_rms(signals: Signals) -> Tensor:
    r"""Root mean square of the activation at the consumers' inputs.

    .. math:: s_c = \Big(\frac{1}{N X} \sum_n \sum_x a_{ncx}^2\Big)^{1/2}

    Source:
        L2 reduction of activations in the grammar of arXiv 1906.04675.
    """
    return (signals.activation.square / signals.positions).sqrt()


def apoz(signals: Signals) -> Tensor:
    r"""Share of positions that are not zero: one minus the average percentage of zeros (APoZ).

    .. math:: s_c = \frac{1}{N X} \sum_n \sum_x [a_{ncx} > 0]

    After ReLU this is the paper's figure; for other activations it is the share above zero.

    Source:
        Hu et al., Network Trimming, arXiv 1607.03250, Eq. 1.
    """
    return signals.positive_share


def mean_gradient(signals: Signals) -> Tensor:
    r"""Mean over images of the absolute gradient summed over a map.

    .. math:: s_c = \frac{1}{N} \sum_n \Big| \sum_x g_{ncx} \Big|

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


def fisher(signals: Signals) -> Tensor:
    r"""Half the mean square, image by image, of the first-order loss change.

    .. math:: s_c = \frac{1}{2N} \sum_n \Big( \sum_x a_{ncx}\, g_{ncx} \Big)^2

    In nats where the loss is a negative log-likelihood: the diagonal of the empirical Fisher
    information of a gate on the channel, as second-order estimate of the loss change.

    Source:
        Theis et al., arXiv 1801.05787, Eq. 6.
    """
    return signals.taylor.square_of_sum / 2


def weight_taylor_squared(signals: Signals) -> Tensor:
    r"""Squared first-order loss change of every weight on its own, summed over a filter.

    .. math:: s_c = \sum_i ( w_{ci}\, \bar g_{ci} )^2

    The gradient is the mean over all images, so other batches give the same scores.

    Source:
        Molchanov et al., Importance Estimation for Neural Network Pruning, arXiv 1906.10771, Eq. 8.
    """
    return (signals.weight * signals.weight_gradient).square().sum(1)


def snip(signals: Signals) -> Tensor:
    r"""Connection sensitivity, summed over a filter.

    .. math:: s_c = \sum_i | w_{ci}\, \bar g_{ci} |

    The gradient is the mean over all images; the paper's division by the total changes no order.

    Source:
        Lee et al., SNIP, arXiv 1810.02340, Eq. 6, reduced to channels.
    """
    return (signals.weight * signals.weight_gradient).abs().sum(1)


def random(signals: Signals) -> Tensor:
    """Uniform random numbers: the floor that any metric must beat.

    Source:
        Mittal et al., Studying the Plasticity of Random Pruning, arXiv 1801.10447.
    """
    return signals.random


def _table(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


METRICS: dict[str, Metric] = _table(
    Metric("l1", l1, "weights", "arXiv 1608.08710"),
    Metric("l2", l2, "weights", "arXiv 1808.06866"),
    Metric("batchnorm_scale", batchnorm_scale, "normalisation", "arXiv 1708.06519"),
    Metric("fpgm", fpgm, "weights", "arXiv 1811.00250"),
    Metric("mean_activation", mean_activation, "forward", "arXiv 1611.06440"),
    Metric("activation_rms", activation_rms, "forward", "arXiv 1906.04675"),
    Metric("apoz", apoz, "forward", "arXiv 1607.03250"),
    Metric("mean_gradient", mean_gradient, "backward", "arXiv 2004.03376"),
    Metric("taylor", taylor, "backward", "arXiv 1611.06440"),
    Metric("taylor_elementwise", taylor_elementwise, "backward", "arXiv 1906.04675"),
    Metric("fisher", fisher, "backward", "arXiv 1801.05787"),
    Metric("weight_taylor_squared", weight_taylor_squared, "backward", "arXiv 1906.10771"),
    Metric("snip", snip, "backward", "arXiv 1810.02340"),
    Metric("random", random, "weights", "arXiv 1801.10447", arm=False),
)


def find_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        SelectorError: There is none; the known names are listed.
    """
    if name not in METRICS:
        raise SelectorError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return METRICS[name]
