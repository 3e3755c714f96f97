"""The laws that every metric obeys, checked on small random networks: for metrics of your own, too.

A metric is a function of a network, a group of channels, images and a loss, and of nothing else:
not of how the channels are numbered, how the images are batched, or what was scored before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.data.loss import Loss
from selector.errors import SelectorError
from selector.network.copying import copy_of
from selector.network.groups import Group, Slice
from selector.network.layers import input_dimension, output_dimension, reading_weights
from selector.network.tracing import find_groups
from selector.saliency.registry import Metric, find_metric
from selector.statistics.channel_statistics import Signals
from selector.statistics.collect import measure_signals

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Scene:
    """A network, a group and single images: what a metric, and its slow twin, is a function of."""

    model: nn.Module
    group: Group
    images: Sequence[Batch]
    """Batches of one image."""
    loss: Loss = functional.cross_entropy
    """Mean loss of a batch."""


EXACT, SAME, ALIKE = 0.0, 1e-6, 1e-5
"""Largest difference between scores, relative to the largest score of the group: none; rounding in
another order; another way of computing."""

FINITE = "one finite number for each channel"
PERMUTED = "channels in another order, the same scores in that order"
BATCHES = "the same images in other batches, the same scores"
AGAIN = "scored again, the same scores"
AS_FOUND = "the network is left exactly as found"
TWIN = "the metric equals its slow twin"


def check_metric(name: str) -> None:
    """Check that a metric obeys the laws of scores, on small random networks in float64.

    The laws: one finite number for each channel; channels in another order give the same scores in
    that order (not asked of `random`); so do the same images in other batches; and the same images
    again; the network is left exactly as found; and the metric equals its twin, where it has one.

    Args:
        name: A metric of the table, also one of your own, or a systematic name of the grammar.

    Raises:
        SelectorError: Unknown metric, or a broken law: metric, law, network and group are named.
    """
    metric = find_metric(name)
    for network in NETWORKS:
        model, groups = _built(network)
        # A copy: a metric that changes the network it is given must not spoil the next check.
        _check_on(_Law(metric, network, _unlike_default(copy_of(model)), groups))


@cache
def _built(network: str) -> tuple[nn.Module, Mapping[str, Group]]:
    """A network of `NETWORKS` and its groups, built and traced once."""
    with torch.random.fork_rng(devices=[]):
        model = _randomised(NETWORKS[network]().double())
    return model, find_groups(model, _images()[0]).required()


@dataclass(frozen=True)
class _Law:
    metric: Metric
    network: str
    model: nn.Module
    groups: Mapping[str, Group]

    def scores(self, model: nn.Module, batch_size: int) -> dict[str, Tensor]:
        """Group -> scores, float64, where the metric applies."""
        parts = (torch.split(values, batch_size) for values in _images())
        batches = list(zip(*parts, strict=True))
        found = measure_signals(model, batches, self.groups, needs=self.metric.needs)
        scores = {}
        for group, signals in found.items():
            if not self.metric.applies(signals):
                continue
            first = self.score(signals, group).clone()
            # A score that changes the signals would change those of all other metrics.
            self.compare(AGAIN, group, self.score(signals, group), first, EXACT)
            scores[group] = first.double()
        return scores

    def score(self, signals: Signals, group: str) -> Tensor:
        try:
            values: object = self.metric.score(signals)
        except SelectorError as error:
            raise self.broken(FINITE, group, str(error)) from error
        if not isinstance(values, Tensor) or not values.is_floating_point():
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise self.broken(FINITE, group, f"{kind}, not a tensor of floating point numbers")
        if values.shape != (signals.channels,):
            shape = f"shape {tuple(values.shape)}, not ({signals.channels},)"
            raise self.broken(FINITE, group, shape)
        if not bool(values.isfinite().all()):
            raise self.broken(FINITE, group, f"{values.tolist()}")
        return values

    def compare(self, law: str, group: str, one: Tensor, other: Tensor, tolerance: float) -> None:
        scale = float(other.abs().max())
        if one.shape != other.shape or not float((one - other).abs().max()) <= tolerance * scale:
            raise self.broken(law, group, f"{one.tolist()}, not {other.tolist()}")

    def broken(self, law: str, group: str | None, detail: str) -> SelectorError:
        place = f"in network {self.network!r}" + (f", group {group!r}" if group else "")
        return SelectorError(f"metric {self.metric.name!r} breaks a law {place}: {law}; {detail}")


def _check_on(case: _Law) -> None:
    before = _state(case.model)
    scores = case.scores(case.model, 4)
    changed = [what for what, value in _state(case.model).items() if before.get(what) != value]
    if changed:
        raise case.broken(AS_FOUND, None, f"changed: {', '.join(changed)}")
    again, otherwise = case.scores(case.model, 4), case.scores(case.model, 3)
    orders = {name: _order(group.channels) for name, group in case.groups.items()}
    permuted = case.scores(_reordered(case.model, case.groups, orders), 4)
    for name, values in scores.items():
        case.compare(AGAIN, name, again[name], values, EXACT)
        case.compare(BATCHES, name, otherwise[name], values, SAME)
        if case.metric.name != "random":
            case.compare(PERMUTED, name, permuted[name], values[orders[name]], SAME)
        if case.metric.twin is not None:
            model = copy_of(case.model).eval().requires_grad_(True)
            model.zero_grad(set_to_none=True)
            singles = list(zip(*(torch.split(part, 1) for part in _images()), strict=True))
            expected = case.metric.twin(Scene(model, case.groups[name], singles))
            twin = torch.tensor(expected, dtype=torch.float64)
            case.compare(TWIN, name, values, twin, ALIKE)


def _order(channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randperm(channels, generator=generator)


def _reordered(
    model: nn.Module, groups: Mapping[str, Group], orders: Mapping[str, Tensor]
) -> nn.Module:
    """The same function with the channels of every group in another order."""
    copied = copy_of(model)
    for name, group in groups.items():
        for part in group.slices:
            _reorder(copied.get_submodule(part.layer), part, orders[name].tolist())
    return copied


def _reorder(layer: nn.Module, part: Slice, order: Sequence[int]) -> None:
    own: list[list[int]] = [[] for _ in order]
    for index, channel in zip(part.indices, part.channels, strict=True):
        own[channel].append(index)
    weights = reading_weights(layer)
    for name, tensor in layer.state_dict(keep_vars=True).items():
        if tensor.ndim == 0 or "." in name or (part.side == "in" and name not in weights):
            continue
        dimension = 0
        if name in weights and part.side != "both":
            dimension = input_dimension(layer) if part.side == "in" else output_dimension(layer)
        positions = torch.arange(size := tensor.shape[dimension])
        for channel, source in enumerate(order):
            # The groups of a convolution share positions of its weight.
            positions[torch.tensor(own[channel]) % size] = torch.tensor(own[source]) % size
        tensor.data = tensor.data.index_select(dimension, positions)


def _state(model: nn.Module) -> dict[str, object]:
    """All of a network that a measurement must leave alone, comparable with ==."""
    found: dict[str, object] = {}
    for name, module in model.named_modules():
        found[f"mode of {name!r}"] = module.training
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            found[f"{hooks} of {name!r}"] = len(getattr(module, hooks))
    for name, parameter in model.named_parameters():
        found[f"requires_grad of {name!r}"] = parameter.requires_grad
        found[f"gradient of {name!r}"] = None if parameter.grad is None else _bits(parameter.grad)
    for name, tensor in model.state_dict().items():
        found[f"values of {name!r}"] = _bits(tensor)
    return found


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


class _Residual(nn.Module):
    """A stream that two layers write and two layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 5, 3, padding=1)
        self.back = nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        stream = torch.relu(self.norm(self.stem(images)))
        stream = stream + self.back(torch.relu(self.inner(stream)))
        logits: Tensor = self.head(torch.relu(stream).mean((2, 3)))
        return logits


def _plain() -> nn.Module:
    first = (nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    second = (nn.Conv2d(4, 5, 3, 2), nn.BatchNorm2d(5), nn.ReLU())
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


def _flattened() -> nn.Module:
    first = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*first, nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "plain": _plain,
    "residual": _Residual,
    "flattened": _flattened,
}
"""Networks that the laws are checked on: of 3x6x6 images and 3 classes."""


def _randomised(model: nn.Module) -> nn.Module:
    """Every parameter and statistic at random."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / 2
            positive = tensor.ndim == 1 and name.endswith(("weight", "running_var"))
            tensor.data.copy_(drawn.abs() + 0.5 if positive else drawn)
    return model


def _unlike_default(model: nn.Module) -> nn.Module:
    """Modes, flags and gradients as measuring would not leave them by chance."""
    list(model.parameters())[-1].requires_grad_(False)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    return model.train()


def _images() -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(7, 3, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.randint(3, (7,), generator=generator)
