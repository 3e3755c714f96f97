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
    RIDGE,
    centred,
    products_with_constant,
    ridged_correlation,
    rows_by_channel,
    sampled,
)
from selector.network.layers import (
    CONVOLUTION,
    channel_dimension,
    input_dimension,
    layer_width,
    weight_blocks,
    weight_from_blocks,
    weight_of,
)
from selector.network.surgery import Cut

DOUBLE = 1024
"""Inputs of a block up to which double precision is kept; the ridge forgives the rest."""


@dataclass(frozen=True, eq=False)
class Fold:
    """A consumer's weight with what went folded into what stays."""

    layer: str
    weight: Tensor
    """Like the layer's own; zero where the removed channels are read."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """How a group's channels predict each other at every consumer: measured once."""

    readers: Mapping[tuple[str, str], "Reader"]
    """(Group, consumer) -> what it reads of the group."""
    absorbers: Absorbers

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
            ridge: Noise that every channel is taken to have of its own, as a share of its variance.
        """
        absorbers = find_absorbers(model, probe_inputs(model, batches))
        found, readers = _measure(model, batches, groups), {}
        for group, layer in list(found):
            # Taken out one by one: of wide groups, each is large.
            places, moments = found.pop((group, layer))
            readers[group, layer] = Reader.of(places, moments, layer in absorbers, ridge)
        return cls(readers, absorbers)

    def joined(self, other: "Prediction") -> "Prediction":
        """This of some groups of a network, and that of others."""
        return Prediction({**self.readers, **other.readers}, self.absorbers)

    def of(
        self, model: nn.Module, group: Group, channels: Sequence[int]
    ) -> tuple[tuple[Fold, ...], tuple[Shift, ...]]:
        """What stands for some channels of a group: weights of its consumers, and constants."""
        folds, shifts = [], []
        for part in group.slices:
            if part.side != "in" or (reader := self.readers.get((group.name, part.layer))) is None:
                continue
            weight, constants = _folded_weight(model, part.layer, reader, channels)
            folds.append(Fold(part.layer, weight))
            if part.layer in self.absorbers:
                shifts.append(Shift(part.layer, self.absorbers[part.layer], constants))
        return tuple(folds), tuple(shifts)


@dataclass(frozen=True, eq=False)
class Reader:
    """What a consumer reads of a group: all that its candidates share."""

    places: Tensor
    """Input positions, shape (blocks, channels, inputs of each)."""
    blocks: tuple["Inputs", ...]
    """Of every group of a grouped convolution."""

    @classmethod
    def of(cls, places: Tensor, moments: Tensor, intercept: bool, ridge: float) -> "Reader":
        """From `products_with_constant` of the inputs in the order of `places`.

        Args:
            places: See the attribute.
            moments: Shape (blocks, inputs + 1, inputs + 1), float64.
            intercept: Whether the consumer can keep a constant.
            ridge: See `Prediction.measured`.
        """
        return cls(places, tuple(Inputs.of(block, intercept, ridge) for block in moments))

    @property
    def pooled(self) -> bool:
        """Whether a channel's inputs are taken for positions of one map."""
        _, channels, each = self.places.shape
        return len(self.blocks[0].means) < channels * each


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs of one block, by which some predict others; float64 but for `inverse`."""

    inverse: Tensor
    """Of the correlation with the ridge on its diagonal, shape (inputs, inputs); in single
    precision where they are more than `DOUBLE`. All sets that may go share it."""
    means: Tensor
    scale: Tensor
    """Standard deviations; about zero, as the means are zero, where no constant can be kept."""

    @classmethod
    def of(cls, moments: Tensor, intercept: bool, ridge: float) -> "Inputs":
        """From `products_with_constant` of one block."""
        if intercept:
            covariance, means, scale = centred(moments)
        else:
            covariance, means = moments[:-1, :-1], moments.new_zeros(len(moments) - 1)
            scale = covariance.diagonal().clamp_min(0).sqrt()
        correlation = ridged_correlation(covariance, scale, ridge)
        correlation = correlation if len(correlation) <= DOUBLE else correlation.float()
        return cls(torch.cholesky_inverse(torch.linalg.cholesky(correlation)), means, scale)

    def predicted(self, gone: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs that go from those that stay: slopes (gone, kept) and intercepts (gone,)."""
        inverse, means, scale = (
            values.to(gone.device) for values in (self.inverse, self.means, self.scale)
        )
        # By blocks of the inverse: only what goes is factorised.
        factor = torch.linalg.cholesky(inverse[gone][:, gone])
        solved = -torch.cholesky_solve(inverse[gone][:, ~gone], factor)
        slopes = scale[gone].unsqueeze(1) * solved
        slopes = slopes * torch.where(scale[~gone] > 0, 1 / scale[~gone], 0.0)
        return slopes, means[gone] - slopes @ means[~gone]


def _places(layer: nn.Module, part: Slice, channels: int) -> Tensor | None:
    """Input positions by block and channel, shape (blocks, channels, each); None where uneven."""
    blocks = layer.groups if isinstance(layer, CONVOLUTION) else 1
    per_block = layer_width(layer, "in") // blocks
    found: dict[tuple[int, int], list[int]] = {}
    for index, channel in sorted(zip(part.indices, part.channels, strict=True)):
        found.setdefault((index // per_block, channel), []).append(index)
    rows = [[found.get((block, c), []) for c in range(channels)] for block in range(blocks)]
    each = {len(places) for row in rows for places in row}
    return torch.tensor(rows) if len(each) == 1 and each != {0} else None


def _measure(
    model: nn.Module, batches: Batches, groups: Iterable[Group]
) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """(Group, consumer) -> places, and `products_with_constant` of the inputs there."""
    parts: dict[str, dict[str, Tensor]] = {}
    for group in groups:
        for part in group.running:
            if part.side == "in":
                places = _places(model.get_submodule(part.layer), part, group.channels)
                if places is not None:
                    parts.setdefault(part.layer, {})[group.name] = places
    found: dict[tuple[str, str], Tensor] = {}

    def noter(name: str) -> Hook:
        def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            values = args[0].detach().movedim(channel_dimension(layer, args[0]), 1)
            values = sampled(values.flatten(2) if values.ndim > 2 else values.unsqueeze(2))
            for group, places in parts[name].items():
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
    return {(group, layer): (parts[layer][group], m) for (group, layer), m in found.items()}


def _folded_weight(
    model: nn.Module, name: str, reader: Reader, channels: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """A consumer's folded weight, and the constant that its outputs lose, float64."""
    layer, weight = model.get_submodule(name), weight_of(model, name)
    _, count, each = reader.places.shape
    parts = weight_blocks(layer, weight.detach().double()).transpose(2, 3)
    # (blocks, outputs of each block and taps, inputs of each block)
    matrix = parts.flatten(1, 2).clone()
    gone = torch.zeros(count, dtype=torch.bool, device=matrix.device)
    gone[list(channels)] = True
    mask = gone if reader.pooled else gone.repeat_interleave(each)
    constants = []
    for block, (places, inputs) in enumerate(zip(reader.places, reader.blocks, strict=True)):
        own = (places % matrix.shape[-1]).to(matrix.device)
        columns = matrix[block][:, own]  # (rows, channels, each)
        apart = columns if reader.pooled else columns.flatten(1).unsqueeze(2)
        fitted, constant = inputs.predicted(mask)
        # Outputs that the removed channels gave, as those that stay give them.
        lost = apart[:, mask]
        apart[:, ~mask] += torch.einsum("rse,sk->rke", lost, fitted)
        constants.append(torch.einsum("rse,s->r", lost, constant))
        apart[:, mask] = 0
        matrix[block][:, own.flatten()] = apart.reshape(len(apart), -1)
    new = weight_from_blocks(layer, matrix.reshape(parts.shape).transpose(2, 3), weight.shape)
    return new.to(weight.dtype).contiguous(), torch.cat(constants).view(-1, parts.shape[2]).sum(1)


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
