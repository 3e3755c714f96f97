"""What a consumer's inputs tell, and their gradients: hooks that sum it up batch by batch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from selector.groups import CONVOLUTION, Group


@dataclass(frozen=True)
class Moments:
    """A quantity at every position of a channel's map, reduced over an image in five ways.

    Each is a mean over images, shape (channels,). With p the quantity, n the image, x the position
    and the sum over positions running over all consumers:
    """

    sum: Tensor
    r"""mean_n of sum_x p"""
    absolute: Tensor
    r"""mean_n of sum_x abs(p)"""
    square: Tensor
    r"""mean_n of sum_x p^2"""
    absolute_of_sum: Tensor
    r"""mean_n of abs(sum_x p)"""
    square_of_sum: Tensor
    r"""mean_n of (sum_x p)^2"""


@dataclass
class Sums:
    """Running sums over images, shape (channels,), float64; the name of each is its moment."""

    channels: int
    device: torch.device
    totals: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    positive: Tensor = field(init=False)
    positions: float = 0.0
    pending: dict[str, Tensor] = field(default_factory=dict)
    """Sums over positions of the batch at hand, shape (images, channels), consumers added up."""

    def __post_init__(self) -> None:
        self.positive = torch.zeros(self.channels, dtype=torch.float64, device=self.device)

    def add(self, name: str, reduction: str, values: Tensor) -> None:
        """Add a batch's values, shape (channels,)."""
        sums = self.totals.setdefault(name, {})
        sums[reduction] = sums[reduction] + values if reduction in sums else values

    def finish_batch(self) -> None:
        """Reduce the per-image sums once every consumer has added its part."""
        for name, per_image in self.pending.items():
            self.add(name, "sum", per_image.sum(0))
            self.add(name, "absolute_of_sum", per_image.abs().sum(0))
            self.add(name, "square_of_sum", per_image.square().sum(0))
        self.pending.clear()

    def moments(self, name: str, images: int) -> Moments:
        """The sums as means over images."""
        return Moments(**{key: (value / images).cpu() for key, value in self.totals[name].items()})


@dataclass
class Pass:
    """What the hooks must know of the batch at hand."""

    images: int = 0


@contextmanager
def tapped(
    model: nn.Module, groups: Mapping[str, Group], sums: Mapping[str, Sums], pass_: Pass
) -> Iterator[None]:
    """Context in which every consumer reports its inputs and their gradients."""
    taps: dict[str, list[_Tap]] = {}
    for name, group in groups.items():
        for part in group.slices:
            if part.side == "in":
                index = torch.tensor(part.indices, device=sums[name].device)
                channels = torch.tensor(part.channels, device=sums[name].device)
                taps.setdefault(part.layer, []).append(_Tap(sums[name], index, channels))
    handles = [
        model.get_submodule(layer).register_forward_pre_hook(_watch(found, pass_))
        for layer, found in taps.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Tap:
    """One group's share of one consumer's inputs."""

    sums: Sums
    index: Tensor
    channels: Tensor

    def per_channel(self, values: Tensor) -> Tensor:
        """Sum values (..., inputs of the layer) into (..., channels of the group), float64."""
        out = torch.zeros(
            *values.shape[:-1], self.sums.channels, dtype=torch.float64, device=values.device
        )
        return out.index_add_(-1, self.channels, values.index_select(-1, self.index).double())


def _watch(
    taps: list[_Tap], pass_: Pass
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def pre_hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # A view of its own for this consumer: its gradient is the flow through this layer alone.
        inputs = args[0].view_as(args[0])
        maps = _maps(module, inputs.detach())
        _add_activation(taps, maps)
        if inputs.requires_grad:

            def on_gradient(gradient: Tensor) -> None:
                # The batch's loss is a mean over images; one image's gradient is that many times.
                _add_gradient(taps, maps, _maps(module, gradient) * pass_.images)

            inputs.register_hook(on_gradient)  # type: ignore[no-untyped-call]
        return (inputs, *args[1:])

    return pre_hook


def _maps(layer: nn.Module, values: Tensor) -> Tensor:
    """A layer's inputs as (images, inputs, positions)."""
    if isinstance(layer, CONVOLUTION):
        return values.flatten(2)
    return values.reshape(values.shape[0], -1, values.shape[-1]).transpose(1, 2)


def _add_activation(taps: list[_Tap], maps: Tensor) -> None:
    absolute, square, positive = maps.abs().sum((0, 2)), maps.square().sum((0, 2)), maps > 0
    for tap in taps:
        tap.sums.add("activation", "absolute", tap.per_channel(absolute))
        tap.sums.add("activation", "square", tap.per_channel(square))
        tap.sums.positive += tap.per_channel(positive.sum((0, 2)))
        # Every channel of a consumer has equally many inputs, so an average counts positions.
        per_image = maps.shape[2] * len(tap.index) / tap.sums.channels
        tap.sums.positions += per_image * maps.shape[0]
    _add_pending(taps, "activation", maps.sum(2))


def _add_gradient(taps: list[_Tap], maps: Tensor, gradients: Tensor) -> None:
    products = maps * gradients
    for name, values in (("gradient", gradients), ("taylor", products)):
        absolute, square = values.abs().sum((0, 2)), values.square().sum((0, 2))
        for tap in taps:
            tap.sums.add(name, "absolute", tap.per_channel(absolute))
            tap.sums.add(name, "square", tap.per_channel(square))
        _add_pending(taps, name, values.sum(2))


def _add_pending(taps: list[_Tap], name: str, per_image: Tensor) -> None:
    for tap in taps:
        part = tap.per_channel(per_image)
        pending = tap.sums.pending
        pending[name] = pending[name] + part if name in pending else part
