r"""Covariance of a group's channels at its consumers, and what its consumers make of it.

A consumer with weights W reads the channels x of a group. Removing a set of channels and refitting
the weights that read the others leaves an error that depends on two matrices alone:

.. math:: A = \mathrm{Cov}[x], \qquad B = \sum_t W_t M W_t^T

with t over the taps of a convolution. M is the identity for the squared error of the outputs, or
the covariance of the outputs' gradients for the loss change to second order (the K-FAC form).

Approximations:
    - Taps of a convolution all see the same A, and products across taps are left out.
    - A is centred: the refit has an intercept, which a bias or the BatchNorm behind keeps. A
      consumer with neither loses the mean of what goes, and the error does not count that.
    - At most `POSITIONS` positions of a map are read, the same ones in every image.
    - A channel that several inputs stand for (a flattened map) has all of them in A, up to `EXACT`
      inputs of a consumer; beyond that they are taken for positions of one map.
    - A consumer that reads other groups too is refitted on this group's channels alone.
    - Matrices of more than `DOUBLE` inputs are kept in single precision, or they fill the memory;
      the ridge keeps A's condition number below ten times the inputs.
    - The K-FAC form takes the gradients at the consumer's *inputs*, whose covariance is B for a
      linear layer or a 1 x 1 convolution, and elsewhere if gradients of two positions of the output
      are uncorrelated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from selector.errors import SelectorError
from selector.network.input_products import (
    centred,
    products_with_constant,
    ridged_correlation,
    rows_by_channel,
)
from selector.network.layers import CONVOLUTION
from selector.statistics.channel_statistics import ConsumerInput, Signals
from selector.statistics.reductions import precise
from selector.statistics.statistic import LayerCall, register_statistic

WIDEST = 8192
"""Channels of a group up to which every two are compared: half a gigabyte a consumer."""
DOUBLE = 512
"""Inputs of a consumer up to which its matrices have double precision."""


@register_statistic("input_products", by_consumer=True, sampled=True, expensive=True)
def input_products(call: LayerCall) -> Tensor:
    """Products of every two inputs of a consumer and a constant one, summed over positions.

    Returns:
        Shape (blocks, inputs + 1, inputs + 1), float64, summed over images; the blocks are the
        groups of a grouped convolution, whose inputs are read apart.
    """
    rows, width = _rows(call.values, call)
    return products_with_constant(rows) / (call.share * width)


@register_statistic(
    "gradient_products", of="gradient", by_consumer=True, sampled=True, expensive=True
)
def gradient_products(call: LayerCall) -> Tensor:
    """Products of the gradients at every two inputs of a consumer, their mean over positions.

    Returns:
        Shape (blocks, inputs, inputs), summed over images; float64, or of wide consumers as the
        gradients are: nothing is subtracted from these products, so that no digits are lost.
    """
    assert call.gradient is not None
    rows, _ = _rows(call.gradient, call)
    products = torch.bmm(rows.transpose(1, 2), rows)
    lasting = products if rows.shape[2] > DOUBLE else products.double()
    return lasting / call.gradient.shape[2]


def _rows(values: Tensor, call: LayerCall) -> tuple[Tensor, int]:
    """A consumer's inputs as the rows of one matrix for each block.

    Returns:
        Shape (blocks, rows, inputs), and how many inputs of one channel are taken for positions.
    """
    if call.channels > WIDEST:
        raise SelectorError(
            f"a group of {call.channels} channels is too wide to compare every two of them (at "
            f"most {WIDEST}); name it in ignore, or use another criterion"
        )
    images, inputs, positions = values.shape
    blocks = call.layer.groups if isinstance(call.layer, CONVOLUTION) else 1
    each = inputs // call.channels // blocks
    apart = precise(values).reshape(images, call.channels, blocks, each, positions)
    return rows_by_channel(apart.transpose(1, 2))


@dataclass(frozen=True, eq=False)
class View:
    """One consumer's view of a group, in units of every input's standard deviation."""

    inputs: Tensor
    """A with the ridge on its diagonal, shape (inputs, inputs); an input that is constant has no
    correlation with others."""
    outputs: Tensor
    """B, same shape; zero for an input that is constant."""
    of_inputs: "View | None" = None
    """Another view of the same inputs, if any: A is then inverted once for both."""

    @cached_property
    def inverse(self) -> Tensor:
        """H, the inverse of A, shape (inputs, inputs)."""
        if self.of_inputs is not None:
            return self.of_inputs.inverse
        return in_precision(torch.cholesky_inverse(torch.linalg.cholesky(self.inputs.double())))

    @property
    def importance(self) -> Tensor:
        """What each input adds to the outputs by itself, shape (inputs,)."""
        return self.outputs.diagonal().clamp_min(0)


def views_of(signals: Signals, *, by_gradient: bool = False) -> list[View]:
    """Every consumer's view of a group; of a grouped convolution, every block's.

    Made once for the same signals.

    Args:
        signals: Of the group, with `input_products` and, `by_gradient`, `gradient_products`.
        by_gradient: Whether errors are loss changes to second order, in nats. Otherwise they are
            squared errors of a consumer's outputs as shares of these outputs' own variance: scaling
            a layer that the next one undoes changes nothing.

    Raises:
        SelectorError: The signals lack the statistics, or these are not finite.
    """
    key = ("views", by_gradient)
    if key not in signals.memo:
        scaled = _scaled_views(signals)
        found = _weighted(signals, scaled) if by_gradient else [view for view, _ in scaled]
        signals.memo[key] = found
    views: list[View] = signals.memo[key]
    return views


def merged(views: Sequence[View]) -> list[View]:
    """Views of the same inputs as one: what is left of a set is the same, and errors add up."""
    found: list[View] = []
    for view in views:
        same = [n for n, one in enumerate(found) if torch.equal(one.inputs, view.inputs)]
        if same:
            one = found[same[0]]
            found[same[0]] = View(one.inputs, one.outputs + view.outputs, one)
        else:
            found.append(view)
    return found


def _scaled_views(signals: Signals) -> list[tuple[View, Tensor]]:
    """Views for the outputs' squared error, and the deviations that are their inputs' units."""
    if "scaled views" not in signals.memo:
        found: list[tuple[View, Tensor]] = []
        for consumer in signals.consumer_inputs:
            moments = _measured(consumer, "input_products")
            others = _grams(consumer, moments.shape[0], moments.shape[1] - 1)
            scaled = [_view(one, other) for one, other in zip(moments, others, strict=True)]
            total = sum(float((v.inputs * v.outputs).sum()) for v, _ in scaled)
            # A consumer that gives nothing has no error.
            share = total if total > 0 else 1.0
            found += [(View(v.inputs, v.outputs / share), scale) for v, scale in scaled]
        signals.memo["scaled views"] = found
    views: list[tuple[View, Tensor]] = signals.memo["scaled views"]
    return views


def _weighted(signals: Signals, scaled: Sequence[tuple[View, Tensor]]) -> list[View]:
    """The same inputs' views for the loss change."""
    products = [
        block / 2
        for consumer in signals.consumer_inputs
        for block in _measured(consumer, "gradient_products")
    ]
    return [
        View(view.inputs, in_precision(block * torch.outer(scale, scale)), view)
        for (view, scale), block in zip(scaled, products, strict=True)
    ]


def _measured(consumer: ConsumerInput, name: str) -> Tensor:
    if name not in consumer.products:
        raise SelectorError(
            f"these signals hold no {name}; state what the proposal needs where it is registered"
        )
    found = consumer.products[name]
    if not bool(found.isfinite().all()):
        raise SelectorError(f"{name} of a consumer are not finite; check the network's weights")
    return found


def _grams(consumer: ConsumerInput, blocks: int, inputs: int) -> Iterator[Tensor]:
    """Products of the weights that read every two inputs, summed over outputs and taps."""
    channels = len(consumer.weight)
    weight = consumer.weight.double().reshape(channels, blocks, -1, consumer.weight.shape[2])
    for block in weight.unbind(1):
        rows = block.reshape(inputs, -1)
        yield rows @ rows.T


def _view(moments: Tensor, outputs: Tensor) -> tuple[View, Tensor]:
    covariance, _, scale = centred(moments)
    outer = torch.outer(scale, scale)
    inputs = ridged_correlation(covariance, scale)
    return View(in_precision((inputs + inputs.T) / 2), in_precision(outputs * outer)), scale


def in_precision(matrix: Tensor) -> Tensor:
    """A matrix of inputs, in single precision where it is wide."""
    return matrix if len(matrix) <= DOUBLE else matrix.float()
