"""The grammar of saliencies: base x pointwise x reduction x scaling, each a small function.

After Persand, Anderson and Gregg, Taxonomy of Saliency Metrics for Channel Pruning, arXiv
1906.04675. Every combination has a systematic name and can be asked for by it:

    BASE.POINTWISE.REDUCTION[.SCALING][@producers]

`activation.taylor.abs_of_sum` is the mean over images of abs(sum over positions of a g), measured
where removal acts, at the consumers' inputs; `@producers` measures at the producers' outputs.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from selector.errors import SelectorError
from selector.statistics.channel_statistics import Signals
from selector.statistics.reductions import Moments

POINTWISE = ("value", "gradient", "taylor", "gauss_newton", "second_taylor")
r"""Of a value x with gradient g and curvature h: x; g; x g; x^2 h / 2; x^2 h / 2 - x g."""

REDUCTION: Mapping[str, Callable[[Moments], Tensor]] = {
    "sum": lambda moments: moments.sum,
    "l1": lambda moments: moments.absolute,
    "l2": lambda moments: moments.norm,
    "abs_of_sum": lambda moments: moments.absolute_of_sum,
    "square_of_sum": lambda moments: moments.square_of_sum,
}
"""Over the positions of one image, then the mean over images; or over the weights of a filter."""

Quantity = Callable[[Signals], tuple[Moments, float]]
"""Moments of a quantity, and the number of values of one channel that they run over."""

Scaling = Callable[[Tensor, float, Signals], Tensor]

SCALING: Mapping[str, Scaling] = {
    "none": lambda scores, values, signals: scores,
    "cardinality": lambda scores, values, signals: scores / values,
    "layer_l1": lambda scores, values, signals: scores / _nonzero(scores.abs().sum()),
    "layer_l2": lambda scores, values, signals: scores / _nonzero(scores.square().sum().sqrt()),
    "remaining_cardinality": lambda scores, values, signals: scores / (values * signals.channels),
    "weights_removed": lambda scores, values, signals: scores / signals.weights_removed,
}
"""One factor for the whole group: it changes no order within a group, but that between groups.

`cardinality`: the values reduced for one channel; `layer_l1`, `layer_l2`: norm of the group's
scores; `remaining_cardinality`: the values of all the channels that are left; `weights_removed`:
the weights that go with the channel, from all the layers of the group.
"""


def _nonzero(total: Tensor) -> Tensor:
    return torch.where(total > 0, total, torch.ones_like(total))


def weight(pointwise: str) -> Quantity:
    """The weights of a channel's filters; the gradient is that of the mean loss over all images."""

    def quantity(signals: Signals) -> tuple[Moments, float]:
        found = signals.weight_moments
        if pointwise not in found:
            raise SelectorError(
                f"these signals hold no {pointwise!r} of weights (measured: {', '.join(found)})"
            )
        return found[pointwise], float(signals.rows.shape[1])

    return quantity


def activation(pointwise: str) -> Quantity:
    """The activations at the consumers' inputs, and the gradients of each image's own loss."""

    def quantity(signals: Signals) -> tuple[Moments, float]:
        return signals.at_consumers[pointwise], signals.at_consumers.positions

    return quantity


def output(pointwise: str) -> Quantity:
    """The same at the producers' outputs, before normalisation and activation function."""

    def quantity(signals: Signals) -> tuple[Moments, float]:
        return signals.at_producers[pointwise], signals.at_producers.positions

    return quantity


def compose(
    quantity: Quantity, reduction: str, scaling: str = "none"
) -> Callable[[Signals], Tensor]:
    """A metric's function from parts of the grammar: `compose(activation("taylor"), "l1")`."""

    def score(signals: Signals) -> Tensor:
        moments, values = quantity(signals)
        return SCALING[scaling](REDUCTION[reduction](moments), values, signals)

    return score


BASE: Mapping[str, Callable[[str], Quantity]] = {"weight": weight, "activation": activation}
AT_PRODUCERS = "@producers"


def parse(name: str) -> Callable[[Signals], Tensor] | None:
    """The function of a systematic name, or None where the name is none of the grammar's."""
    combination, at, point = name.partition("@")
    parts = combination.split(".")
    if len(parts) == 3:
        parts.append("none")
    if len(parts) != 4 or at + point not in ("", AT_PRODUCERS):
        return None
    base, pointwise, reduction, scaling = parts
    if base not in BASE or pointwise not in POINTWISE:
        return None
    if reduction not in REDUCTION or scaling not in SCALING:
        return None
    if point and base != "activation":
        return None
    made = output if point else BASE[base]
    return compose(made(pointwise), reduction, scaling)


def systematic_names() -> Iterator[str]:
    """Every name of the grammar, the unscaled ones without a scaling in it."""
    points = (("weight", ""), ("activation", ""), ("activation", AT_PRODUCERS))
    for (base, point), *rest in itertools.product(points, POINTWISE, REDUCTION, SCALING):
        pointwise, reduction, scaling = rest
        suffix = "" if scaling == "none" else f".{scaling}"
        yield f"{base}.{pointwise}.{reduction}{suffix}{point}"


def need_of(name: str) -> str:
    """What a systematic name needs of the pass."""
    base, pointwise, *_ = name.partition("@")[0].split(".")
    if pointwise in ("gauss_newton", "second_taylor"):
        return "second_order"
    if pointwise == "value":
        return "weights" if base == "weight" else "forward"
    return "backward"
