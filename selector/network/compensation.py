"""Compensated removal: what a removed channel's mean added to its consumers, kept as a constant.

A removed channel is replaced by its mean over calibration images: the consumer's bias, or the
running mean of the BatchNorm behind it, absorbs weight x mean. Exact inside a map; at a zero-padded
border the constant stands for a little more than was there. Consumers with neither are not
compensated.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selector.data.batches import Batches
from selector.data.forward import call, evaluating, probe_inputs, read, run_batch
from selector.network.coupling.law import judging
from selector.network.coupling.ties import Owner, shared_parameters
from selector.network.groups import Group
from selector.network.hooks import Hook, forward_hooks
from selector.network.layers import (
    CONVOLUTION,
    NORMALISATION,
    channel_dimension,
    layer_width,
    weight_of,
)
from selector.network.masking import masked
from selector.typing import ChannelSet

Means = Mapping[str, Tensor]
"""Consumer -> mean of each of its inputs over images and positions, shape (inputs,), float64."""

Absorbers = Mapping[str, str]
"""Consumer -> the layer whose bias or running mean absorbs a shift: itself, or a BatchNorm."""


@dataclass(frozen=True, eq=False)
class Shift:
    """A constant added to every output of a layer, and where it is kept."""

    layer: str
    absorber: str
    values: Tensor
    """In units of the layer's outputs, shape (outputs,), float64."""


def measure_means(model: nn.Module, batches: Batches, groups: Iterable[Group]) -> dict[str, Tensor]:
    """Mean of each input of every consumer: what a compensated channel leaves behind.

    Args:
        model: The network; left as found.
        batches: Calibration images; only the inputs are used.
        groups: The groups whose consumers are looked at.

    Returns:
        Consumer -> mean over images and positions, shape (inputs,), float64.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def noter(name: str) -> Hook:
        def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs = args[0]
            dimension = channel_dimension(layer, inputs)
            values = inputs.movedim(dimension, 0).flatten(1).sum(1, dtype=torch.float64)
            sums[name] = sums[name] + values if name in sums else values
            counts[name] = counts.get(name, 0) + inputs.numel() // inputs.shape[dimension]

        return note

    hooks = {name: noter(name) for group in groups for name in group.consumers}
    with torch.no_grad(), evaluating(model), forward_hooks(model, hooks, pre=True):
        for number, (inputs, _) in enumerate(read(model, batches)):
            run_batch(model, inputs, number)
    return {name: values / counts[name] for name, values in sums.items()}


def find_absorbers(model: nn.Module, inputs: object) -> dict[str, str]:
    """Which consumers can keep a shift, and where: in their bias, or in a BatchNorm behind them.

    A bias that layers share keeps none, and neither does a BatchNorm where something else reads the
    layer's outputs too.

    Args:
        model: Any network; left as found.
        inputs: A few images. The BatchNorm behind a layer is the one that is given its very output.
    """
    shared = {owner for owners in shared_parameters(model) for owner in owners}
    found: dict[str, str] = {}
    behind = _norms_behind(model, inputs)
    for name, module in model.named_modules():
        if not isinstance(module, CONVOLUTION | nn.Linear) or getattr(module, "transposed", False):
            continue
        if isinstance(module.bias, Tensor):
            if Owner(name, "bias") not in shared:
                found[name] = name
        elif name in behind and model.get_submodule(behind[name][0]).running_mean is not None:
            found[name] = behind[name][0]
    kept_by_norms = {name: behind[name] for name, place in found.items() if place != name}
    for name in _not_absorbed(model, inputs, kept_by_norms):
        del found[name]
    return found


def _norms_behind(model: nn.Module, inputs: object) -> dict[str, tuple[str, float]]:
    """Layer -> the first BatchNorm that reads its very output, and the mean size of that output."""
    outputs: dict[int, str] = {}
    behind: dict[str, tuple[str, float]] = {}
    kept: list[Tensor] = []

    def noter(name: str) -> Hook:
        def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not isinstance(module, NORMALISATION):
                outputs[id(output)] = name
                kept.append(output)  # While it lives, no other tensor has its identity.
            elif id(args[0]) in outputs:
                size = float(args[0].abs().double().mean())
                behind.setdefault(outputs[id(args[0])], (name, size))

        return note

    kinds = CONVOLUTION | nn.Linear | NORMALISATION
    hooks = {n: noter(n) for n, module in model.named_modules() if isinstance(module, kinds)}
    with torch.no_grad(), evaluating(model), forward_hooks(model, hooks):
        call(model, inputs)
    return behind


def _not_absorbed(
    model: nn.Module, inputs: object, behind: Mapping[str, tuple[str, float]]
) -> list[str]:
    """Layers to whose outputs nothing can be added that the mean of the BatchNorm takes off again.

    Tried with a constant for every output: the network's outputs must stay as they are.
    """
    if not behind:
        return []
    with judging(model, inputs) as judge:

        def absorbed(names: Iterable[str]) -> bool:
            shifts = [_trial_shift(model, name, *behind[name]) for name in names]
            hooks = {shift.layer: _subtracting(shift.values) for shift in shifts}
            with forward_hooks(model, hooks), shifted(model, shifts):
                return judge.difference(judge.whole, judge.outputs()) is None

        return [] if absorbed(behind) else [name for name in behind if not absorbed([name])]


def _trial_shift(model: nn.Module, layer: str, norm: str, size: float) -> Shift:
    width = layer_width(model.get_submodule(layer), "out")
    generator = torch.Generator().manual_seed(width)
    values = 1 + torch.rand(width, generator=generator, dtype=torch.float64)
    return Shift(layer, norm, values * (size or 1.0))


def _subtracting(values: Tensor) -> Hook:
    def subtract(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        shape = [1] * output.ndim
        shape[channel_dimension(layer, output)] = -1
        return output - values.to(output).view(shape)

    return subtract


def shifts_of(
    model: nn.Module, group: Group, channels: Sequence[int], means: Means, absorbers: Absorbers
) -> tuple[Shift, ...]:
    """What removing these channels takes from the mean output of each consumer that can keep it."""
    gone = set(channels)
    found = []
    for part in group.slices:
        if part.side != "in" or part.layer not in absorbers or part.layer not in means:
            continue
        index = [i for i, c in zip(part.indices, part.channels, strict=True) if c in gone]
        removed = torch.zeros_like(means[part.layer])
        removed[index] = means[part.layer][index]
        values = _through(model.get_submodule(part.layer), weight_of(model, part.layer), removed)
        found.append(Shift(part.layer, absorbers[part.layer], values))
    return tuple(found)


def _through(layer: nn.Module, weight: Tensor, constants: Tensor) -> Tensor:
    """Outputs of a layer without bias for inputs that are constant over all positions."""
    kernels = weight.detach().double().flatten(2).sum(2) if weight.ndim > 2 else weight.double()
    blocks = layer.groups if isinstance(layer, CONVOLUTION) else 1
    rows = kernels.detach().view(blocks, -1, kernels.shape[1])
    columns = constants.to(kernels.device).view(blocks, -1, 1)
    return torch.bmm(rows, columns).flatten()


@contextmanager
def shifted(
    model: nn.Module, shifts: Sequence[Shift], gone: Mapping[str, Sequence[int]] | None = None
) -> Iterator[None]:
    """Context in which the shifts are kept where they are absorbed; the tensors come back.

    Args:
        model: The network, masked or cut.
        shifts: What to add to the outputs of which layers.
        gone: Outputs that have been cut out of layers, for shifts that were made before.
    """
    undo: list[tuple[Tensor, Tensor]] = []
    try:
        for shift in shifts:
            target, values = _target(model, shift, (gone or {}).get(shift.layer, ()))
            undo.append((target, target.data))
            target.data = target.data + values.to(target)
        torch.clear_autocast_cache()
        yield
    finally:
        for target, data in reversed(undo):
            target.data = data
        torch.clear_autocast_cache()


def apply_shifts(
    model: nn.Module, shifts: Sequence[Shift], gone: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Keep the shifts for good; see `shifted`."""
    for shift in shifts:
        target, values = _target(model, shift, (gone or {}).get(shift.layer, ()))
        target.data += values.to(target)


def _target(model: nn.Module, shift: Shift, gone: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The tensor that absorbs a shift, and what to add to it."""
    values = shift.values
    if gone:
        left = torch.ones(len(values), dtype=torch.bool, device=values.device)
        left[list(gone)] = False
        values = values[left]
    absorber = model.get_submodule(shift.absorber)
    if isinstance(absorber, NORMALISATION):
        assert absorber.running_mean is not None
        # What is added to a layer's outputs is taken from the mean that is subtracted from them.
        return absorber.running_mean, -values
    bias = absorber.bias
    assert isinstance(bias, Tensor)
    return bias, values


@dataclass(frozen=True, eq=False)
class Compensation:
    """What the channels of a network leave behind when they go: measured once, for any of them."""

    means: Means
    absorbers: Absorbers

    @classmethod
    def measured(
        cls, model: nn.Module, batches: Batches, groups: Iterable[Group]
    ) -> "Compensation":
        """Measure the means of these groups' channels, and find what can absorb them."""
        absorbers = find_absorbers(model, probe_inputs(model, batches))
        return cls(measure_means(model, batches, groups), absorbers)

    def of(self, model: nn.Module, group: Group, channels: Sequence[int]) -> tuple[Shift, ...]:
        """The shifts that stand for these channels."""
        return shifts_of(model, group, channels, self.means, self.absorbers)


@contextmanager
def removed(
    model: nn.Module,
    removals: Iterable[tuple[Group, ChannelSet]],
    compensation: Compensation | None = None,
) -> Iterator[None]:
    """Context in which channel sets of several groups are masked, compensated where that is asked.

    Args:
        model: The network; it comes back bit for bit.
        removals: Groups with the channels that go.
        compensation: What puts the channels' means in their place; None for plain removal.
    """
    with ExitStack() as stack:
        for group, channels in removals:
            shifts = compensation.of(model, group, channels) if compensation and channels else ()
            stack.enter_context(masked(model, group, channels))
            stack.enter_context(shifted(model, shifts))
        yield
