r"""Repaired removal of one group's channels: what the others can stand in for is folded into them.

Where the channels x_K of a group that stay predict those that go,

.. math:: x_S \approx T x_K + c, \qquad T = A_{SK} (A_{KK} + \rho D_{KK})^{-1},

a consumer with weights W gives nearly what it gave before with W_K + W_S T, and the constant W_S c
in its bias or in the BatchNorm behind it. A is the covariance of the group's channels at the
consumer, measured once; D its diagonal. A consumer that can keep no constant is fitted without.

Source:
    Neuron merging (arXiv 2010.13160) with least squares for similarity; METHOD.md, section 8.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selector.data.batches import Batches
from selector.data.forward import evaluating, probe_inputs, read, run_batch
from selector.network.compensation import Absorbers, Shift, find_absorbers
from selector.network.groups import Group, Slice
from selector.network.hooks import Hook, forward_hooks
from selector.network.input_products import (
    centred,
    products_with_constant,
    rows_by_channel,
    sampled,
)
from selector.network.layers import (
    CONVOLUTION,
    channel_dimension,
    input_dimension,
    layer_width,
    weight_of,
)
from selector.network.surgery import Cut

RIDGE = 0.1
"""Noise that every channel is taken to have of its own, as a share of its variance."""


@dataclass(frozen=True, eq=False)
class Fold:
    """A consumer's weight with what went folded into what stays."""

    layer: str
    weight: Tensor
    """Like the layer's own; zero where the removed channels are read."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """How a group's channels predict each other at every consumer: measured once."""

    moments: Mapping[tuple[str, str], Tensor]
    """(Group, consumer) -> `products_with_constant` of the inputs in the order of `_places`, shape
    (blocks, inputs + 1, inputs + 1), float64."""
    absorbers: Absorbers
    ridge: float = RIDGE
    """Noise that every channel is taken to have of its own, as a share of its variance."""

    @classmethod
    def measured(
        cls,
        model: nn.Module,
        batches: Batches,
        groups: Iterable[Group],
        *,
        ridge: float = RIDGE,
    ) -> "Prediction":
        """Measure the groups' channels at what reads them.

        Args:
            model: The network; left as found.
            batches: Calibration images; only the inputs are used.
            groups: The groups.
            ridge: See the attribute.
        """
        absorbers = find_absorbers(model, probe_inputs(model, batches))
        return cls(_measure(model, batches, groups), absorbers, ridge)

    def of(
        self, model: nn.Module, group: Group, channels: Sequence[int]
    ) -> tuple[tuple[Fold, ...], tuple[Shift, ...]]:
        """What stands for some channels of a group: weights of its consumers, and constants."""
        folds, shifts = [], []
        for part in group.slices:
            if part.side != "in" or (moments := self.moments.get((group.name, part.layer))) is None:
                continue
            absorber = self.absorbers.get(part.layer)
            fit = Fit(moments, absorber is not None, self.ridge)
            weight, constants = _folded_weight(model, part, channels, fit)
            folds.append(Fold(part.layer, weight))
            if absorber is not None:
                shifts.append(Shift(part.layer, absorber, constants))
        return tuple(folds), tuple(shifts)


@dataclass(frozen=True, eq=False)
class Fit:
    """What a consumer's channels are predicted from, and how."""

    moments: Tensor
    intercept: bool
    """Whether a constant can be kept."""
    ridge: float

    def predicted(self, block: int, gone: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs that go from those that stay: slopes (gone, kept) and intercepts (gone,)."""
        moments = self.moments[block].to(gone.device)
        if self.intercept:
            covariance, means, scale = centred(moments)
        else:
            covariance, means = moments[:-1, :-1], moments.new_zeros(len(moments) - 1)
            scale = covariance.diagonal().clamp_min(0).sqrt()
        outer = torch.outer(scale, scale)
        correlation = torch.where(outer > 0, covariance / outer, 0.0)
        inner = correlation[~gone][:, ~gone]
        inner.diagonal().fill_(1 + self.ridge)
        solved = torch.cholesky_solve(correlation[~gone][:, gone], torch.linalg.cholesky(inner))
        slopes = scale[gone].unsqueeze(1) * solved.mT
        slopes = slopes * torch.where(scale[~gone] > 0, 1 / scale[~gone], 0.0)
        return slopes, means[gone] - slopes @ means[~gone]


def _places(layer: nn.Module, part: Slice) -> Tensor | None:
    """Input positions by block and channel, shape (blocks, channels, each); None where uneven."""
    blocks = layer.groups if isinstance(layer, CONVOLUTION) else 1
    per_block = layer_width(layer, "in") // blocks
    found: dict[tuple[int, int], list[int]] = {}
    for index, channel in sorted(zip(part.indices, part.channels, strict=True)):
        found.setdefault((index // per_block, channel), []).append(index)
    channels = sorted(set(part.channels))
    rows = [[found.get((block, c), []) for c in channels] for block in range(blocks)]
    each = {len(places) for row in rows for places in row}
    return torch.tensor(rows) if len(each) == 1 and each != {0} else None


def _measure(
    model: nn.Module, batches: Batches, groups: Iterable[Group]
) -> dict[tuple[str, str], Tensor]:
    parts: dict[str, list[tuple[str, Tensor]]] = {}
    for group in groups:
        for part in group.running:
            if part.side == "in":
                places = _places(model.get_submodule(part.layer), part)
                if places is not None:
                    parts.setdefault(part.layer, []).append((group.name, places))
    found: dict[tuple[str, str], Tensor] = {}

    def noter(name: str) -> Hook:
        def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            values = args[0].detach().movedim(channel_dimension(layer, args[0]), 1)
            values = sampled(values.flatten(2) if values.ndim > 2 else values.unsqueeze(2))
            for group, places in parts[name]:
                chosen = values[:, places.flatten().to(values.device)]
                chosen = chosen.float() if chosen.element_size() < 4 else chosen
                rows, _ = rows_by_channel(chosen.reshape(len(values), *places.shape, -1))
                products = products_with_constant(rows)
                key = group, name
                found[key] = found[key] + products if key in found else products

        return note

    hooks = {name: noter(name) for name in parts}
    with torch.no_grad(), evaluating(model), forward_hooks(model, hooks, pre=True):
        for number, (inputs, _) in enumerate(read(model, batches)):
            run_batch(model, inputs, number)
    return found


def _folded_weight(
    model: nn.Module, part: Slice, channels: Sequence[int], fit: Fit
) -> tuple[Tensor, Tensor]:
    """A consumer's folded weight, and the constant that its outputs lose, float64."""
    layer, weight = model.get_submodule(part.layer), weight_of(model, part.layer)
    places = _places(layer, part)
    assert places is not None
    blocks, count, each = places.shape
    dimension = input_dimension(layer)
    moved = weight.detach().double().movedim(dimension, -1)
    # (blocks, outputs of each block and taps, inputs of each block)
    matrix = moved.reshape(blocks, -1, moved.shape[-1]).clone()
    gone = torch.zeros(count, dtype=torch.bool, device=matrix.device)
    gone[[sorted(set(part.channels)).index(c) for c in channels]] = True
    constants = []
    for block in range(blocks):
        own = (places[block] % matrix.shape[-1]).to(matrix.device)
        columns = matrix[block][:, own]  # (rows, channels, each)
        pooled = len(fit.moments[block]) - 1 == count < count * each
        apart = columns if pooled else columns.flatten(1).unsqueeze(2)
        mask = gone if pooled else gone.repeat_interleave(each)
        fitted, constant = fit.predicted(block, mask)
        # Outputs that the removed channels gave, as those that stay give them.
        apart = apart.clone()
        lost = apart[:, mask]
        apart[:, ~mask] += torch.einsum("rse,sk->rke", lost, fitted)
        constants.append(torch.einsum("rse,s->r", lost, constant))
        apart[:, mask] = 0
        matrix[block][:, own.flatten()] = apart.reshape(len(apart), -1)
    new = matrix.reshape(moved.shape).movedim(-1, dimension).to(weight.dtype)
    taps = moved[..., 0].numel() // layer_width(layer, "out")
    return new.contiguous(), torch.cat(constants).reshape(-1, taps).sum(1)


@contextmanager
def folded(model: nn.Module, folds: Sequence[Fold], cuts: Sequence[Cut] = ()) -> Iterator[None]:
    """Context in which consumers have their folded weights; their own come back.

    Args:
        model: The network, masked, or cut by `cuts`.
        folds: The weights, in the positions of the network before it was cut.
        cuts: What has been cut from it.
    """
    undo: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for fold in folds:
            parameter = weight_of(model, fold.layer)
            undo.append((parameter, parameter.data))
            layer, weight = model.get_submodule(fold.layer), fold.weight
            for cut in cuts:
                if cut.layer == fold.layer:
                    dimension = input_dimension(layer)
                    dimension = dimension if cut.side == "in" else 1 - dimension
                    gone = {i % weight.shape[dimension] for i in cut.indices}
                    left = [i for i in range(weight.shape[dimension]) if i not in gone]
                    weight = weight.index_select(
                        dimension, torch.tensor(left, device=weight.device)
                    )
            parameter.data = weight.to(parameter)
        torch.clear_autocast_cache()
        yield
    finally:
        for parameter, data in reversed(undo):
            parameter.data = data
        torch.clear_autocast_cache()
