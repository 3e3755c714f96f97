"""One layer's least-squares problem: its equations gathered from visits, its weights rewritten."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from selector.errors import SelectorError
from selector.network.layers import CONVOLUTION, channel_dimension, weight_blocks
from selector.repair.few_equations import FewEquations
from selector.repair.least_squares import NormalEquations, WeightStep
from selector.repair.own_forwards import plain_reading
from selector.repair.patches import (
    Positions,
    input_rows,
    output_rows,
    rows_of_outputs,
    set_weight_matrices,
    weight_matrices,
)
from selector.repair.ridge_choice import LayerEquations
from selector.repair.walk import Visit

LEAST, PLENTY = 10, 200
"""Equations an unknown: more positions are read up to the first, fewer beyond the second."""
FEWEST_POSITIONS = 16


class NotRowsError(Exception):
    """A layer's equations cannot be put into rows; the message says why."""


@dataclass(frozen=True, eq=False)
class Equations:
    """Of the images that are fitted to, and of those held out."""

    fitting: LayerEquations
    held_out: LayerEquations
    origin: Tensor
    """Subtracted from the inputs, (groups, inputs): small sums keep their digits."""

    @property
    def count(self) -> int:
        """Of both."""
        return self.fitting.count + self.held_out.count


@dataclass(frozen=True, eq=False)
class Sampling:
    """Which images are held out, and how many positions of each are read."""

    held_out: Tensor
    """Shape (images,), boolean."""
    positions: int
    """Of each image, unless equations are few or plenty."""
    seed: int

    def positions_for(self, unknowns: int) -> int:
        """Enough for ten equations an unknown, all images together; fewer where 200 are reached."""
        least, plenty = (-(-n * unknowns // len(self.held_out)) for n in (LEAST, PLENTY))
        return max(least, min(self.positions, max(FEWEST_POSITIONS, plenty)))


def unknowns_of(layer: nn.Module, *, intercept: bool) -> int:
    """Unknowns of each output."""
    _, _, inputs, taps = weight_blocks(layer, cast(Tensor, layer.weight)).shape
    return inputs * taps + intercept


def gather(
    name: str,
    layer: nn.Module,
    kept: Tensor,
    visits: Iterable[Visit],
    sampling: Sampling,
    *,
    intercept: bool,
) -> Equations:
    """Add up the equations of all visits: what the present weights leave of the targets.

    Args:
        name: The layer's name, for errors.
        layer: The pruned network's layer.
        kept: Outputs of the unpruned network's layer that it still has.
        visits: Its calls.
        sampling: Which images and positions.
        intercept: Whether the outputs' means are free; then the inputs are taken relative to the
            first image's mean.

    Raises:
        SelectorError: Activations that are no numbers.
        NotRowsError: Outputs that do not run over the images first, or at positions that pruning
            has removed some of.
    """
    matrices = weight_matrices(layer)
    groups, outputs, inputs = matrices.shape
    device = matrices.device
    parts: list[NormalEquations | FewEquations] = [FewEquations(), FewEquations()]
    origin: Tensor | None = None
    count = sampling.positions_for(unknowns_of(layer, intercept=True))
    for visit in visits:
        rows = _rows(layer, kept.to(device), visit, sampling, count)
        if origin is None:
            origin = rows.of_first_image.mean(1) * intercept
            to_come = rows.inputs.shape[1] * len(sampling.held_out) / (visit.stop - visit.start)
            if to_come >= inputs:
                empty = partial(NormalEquations.empty, groups, inputs, outputs, device)
                parts = [empty(), empty()]
        if intercept:
            rows.inputs.sub_(origin.unsqueeze(1))
        residuals = rows.targets - _present_outputs(layer, matrices, rows.inputs, origin)
        for equations, part in zip(parts, (rows.fitting, rows.held_out), strict=True):
            equations.add(rows.inputs[:, part], residuals[:, part], rows.targets[:, part])
        if not all(equations.is_finite() for equations in parts):
            raise not_finite(name)
    if origin is None:
        origin = matrices.new_zeros(groups, inputs)
    fitting, held_out = parts
    return Equations(fitting, held_out, origin.double())


@dataclass(frozen=True, eq=False)
class _Rows:
    """Equations of one visit: of the images that are fitted to, then of those held out."""

    inputs: Tensor
    """(groups, rows, inputs)."""
    targets: Tensor
    """(groups, rows, outputs)."""
    fitting: slice
    held_out: slice
    of_first_image: Tensor
    """Inputs of the batch's first image."""


def _rows(named: nn.Module, kept: Tensor, visit: Visit, sampling: Sampling, count: int) -> _Rows:
    reading = plain_reading(named, visit.inputs)
    if reading is None:
        raise NotRowsError(f"a {type(named).__name__} with a forward of its own is not refitted")
    layer, inputs_read = reading
    images = visit.stop - visit.start
    available = rows_of_outputs(layer, visit.targets, images)
    if not available:
        raise NotRowsError("its outputs do not have the images first")
    if _positions_of(layer, visit.inputs) != _positions_of(layer, visit.original_inputs):
        raise NotRowsError("what pruning removed are the positions that it reads")
    places = Positions.drawn(len(sampling.held_out), count, sampling.seed + visit.call)
    positions = places.of(visit.start, visit.stop, available, kept.device)
    held = sampling.held_out[visit.start : visit.stop]
    order = torch.argsort(held.int(), stable=True)
    each = positions.shape[1]
    first = int((order == 0).nonzero()) * each
    fitted = int((~held).sum()) * each
    order = order.to(kept.device)
    targets = output_rows(layer, visit.targets, positions, order)[:, kept]
    groups = layer.groups if isinstance(layer, CONVOLUTION) else 1
    inputs = input_rows(layer, inputs_read, visit.targets, positions, order)
    return _Rows(
        inputs,
        targets.view(len(targets), groups, -1).transpose(0, 1),
        slice(0, fitted),
        slice(fitted, None),
        inputs[:, first : first + each],
    )


def _positions_of(layer: nn.Module, inputs: Tensor) -> list[int]:
    """The sizes of a layer's inputs, but for that of its channels."""
    sizes = list(inputs.shape)
    del sizes[channel_dimension(layer, inputs)]
    return sizes


def _present_outputs(layer: nn.Module, matrices: Tensor, inputs: Tensor, origin: Tensor) -> Tensor:
    """What the layer gives now for inputs from which the origin is subtracted."""
    constant = (matrices @ origin.double().unsqueeze(2)).transpose(1, 2)
    bias = cast(Tensor | None, layer.bias)
    if bias is not None:
        constant = constant + bias.double().view(constant.shape)
    dtype = inputs.dtype
    return torch.baddbmm(constant.to(dtype), inputs, matrices.transpose(1, 2).to(dtype))


def not_finite(name: str) -> SelectorError:
    """The error for activations that are no numbers."""
    return SelectorError(
        f"layer {name!r} reads or gives values that are no finite numbers on the calibration "
        "images; check the images and the network's weights"
    )


def apply_step(layer: nn.Module, step: WeightStep, origin: Tensor) -> None:
    """Change the layer's weights and bias, in place.

    Args:
        layer: The one that the equations are of.
        step: In coordinates relative to the origin.
        origin: As in `Equations`.
    """
    shift = step.shift
    if step.change is not None:
        set_weight_matrices(layer, weight_matrices(layer) + step.change)
        shift = shift - (step.change @ origin.unsqueeze(2)).squeeze(2)
    bias = cast(nn.Parameter | None, layer.bias)
    if bias is not None and bool(step.shift.any()):
        bias.data.copy_(bias.detach().double() + shift.flatten())
