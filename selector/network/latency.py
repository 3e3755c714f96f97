"""Latency as a cost: timed on this machine, layer by layer, at a few widths of every group."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from selector.data.batches import Batches, batch_size
from selector.data.forward import call, device_of, evaluating, probe_inputs, to_device
from selector.network.groups import Group
from selector.network.hooks import Hook, forward_hooks
from selector.network.surgery import temporarily_cut

IMAGES = 8
"""Images in a forward pass that is timed, unless inputs are given."""

WIDTHS = (0.25, 0.5, 0.75, 0.9)
"""Shares of a group's channels without which its layers are timed, beside all of them."""

REPEATS = 15
SHORTEST = 2e-3
"""A single timing runs its layer again until so many seconds have passed."""


@dataclass(frozen=True)
class Timed:
    """Latency of two networks on the same inputs, timed in turns."""

    before: float
    """Median seconds of a forward pass of the first."""
    after: float
    """The same times the ratio, so that the two and their ratio agree."""
    ratio: float
    """Median of the second's over the first's, pair by pair: what else the machine does falls on
    both."""
    images: int
    """In the forward pass that was timed."""
    interval: tuple[float, float] | None = None
    """95 % interval of that median; all of the ratios where there are fewer than six."""


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """How long a network takes by the widths of its groups.

    Each layer's time is scaled by what losing channels of each of its groups alone does to it;
    where a layer lies in several, the factors are multiplied. The rest of the forward pass
    (activations, additions, pooling, the interpreter) shrinks with the outputs of those layers as
    far as whole passes show it to.
    """

    seconds: Mapping[str, float]
    """Layer -> time at full width."""
    factors: Mapping[str, Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]]
    """Group -> layer -> shares of channels gone, ascending from 0, and factors, falling from 1."""
    widths: Mapping[str, int]
    """Group -> channels at full width."""
    rest: float
    """Seconds of a forward pass outside these layers."""

    def total(self, gone: Mapping[str, float]) -> float:
        """Seconds of a forward pass when these shares of the groups' original channels are gone."""
        scale = dict.fromkeys(self.seconds, 1.0)
        for name, share in gone.items():
            for layer, (shares, factors) in self.factors[name].items():
                scale[layer] *= float(np.interp(share, shares, factors))
        layers = sum(seconds * scale[layer] for layer, seconds in self.seconds.items())
        width = sum(self.widths.values())
        left = sum(w * (1 - gone.get(name, 0.0)) for name, w in self.widths.items()) / width
        return layers + self.rest * left


@dataclass(frozen=True, eq=False)
class Clock:
    """A table that is held to what whole forward passes take."""

    table: LatencyTable
    unpruned: nn.Module
    inputs: object
    correction: float = 1.0
    """Measured over foretold latency of the network as it is now."""

    @classmethod
    def of(
        cls, model: nn.Module, groups: Mapping[str, Group], batches: Batches, inputs: object | None
    ) -> "Clock":
        """Time the layers of an unpruned network; by default on a few images of the first batch."""
        if inputs is None:
            inputs = probe_inputs(model, batches, IMAGES)
        inputs = to_device(inputs, device_of(model))
        return cls(time_layers(model, groups, inputs), model, inputs)

    def cost(self, gone: Mapping[str, float]) -> float:
        """Seconds of a forward pass when these shares of the groups' original channels are gone."""
        return self.table.total(gone) * (self.correction if any(gone.values()) else 1.0)

    def checked(
        self, model: nn.Module, gone: Mapping[str, float], repeats: int
    ) -> tuple["Clock", Timed]:
        """The clock corrected by timing the network whose groups have lost these shares."""
        timed = time_both(self.unpruned, model, self.inputs, batch_size(self.inputs), repeats)
        foretold = self.table.total(gone) / self.table.total({})
        return replace(self, correction=timed.ratio / foretold), timed


def time_layers(model: nn.Module, groups: Mapping[str, Group], inputs: object) -> LatencyTable:
    """Time every layer of every group at a few of the group's widths.

    Costs a handful of forward passes for each of the widths. Threads are left as they are.

    Args:
        model: The network, at full width; left as found.
        groups: Its groups.
        inputs: As the network will be called with where latency matters.
    """
    with torch.no_grad(), evaluating(model):
        seen = _inputs_of(
            model,
            {part.layer for g in groups.values() for part in g.sided if not part.idle},
            inputs,
        )
        layers = {name: model.get_submodule(name) for name in seen}
        seconds = {name: _seconds(layers[name], seen[name]) for name in seen}
        factors = {
            name: _factors(model, group, inputs, seconds, seen) for name, group in groups.items()
        }
        whole = median_seconds(lambda: call(model, inputs), device_of(model))
    widths = {name: group.channels * len(group.slices) for name, group in groups.items()}
    return LatencyTable(seconds, factors, widths, max(0.0, whole - sum(seconds.values())))


def _factors(
    model: nn.Module,
    group: Group,
    inputs: object,
    seconds: Mapping[str, float],
    seen: Mapping[str, Sequence[Tensor]],
) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Layer -> what is left of its time when shares of this group's channels are gone."""
    counts = sorted({round(share * group.channels) for share in WIDTHS} - {0, group.channels})
    layers = dict.fromkeys(part.layer for part in group.sided if part.layer in seconds)
    found: dict[str, list[float]] = {name: [1.0] for name in layers}
    for count in counts:
        with temporarily_cut(model, [(group, range(count))]):
            smaller = _inputs_of(model, set(layers), inputs)
            for name in layers:
                time_now = _seconds(model.get_submodule(name), smaller[name])
                # More channels never take less time, whatever a noisy timing says.
                found[name].append(min(found[name][-1], time_now / seconds[name]))
    shares = (0.0, *(count / group.channels for count in counts))
    return {name: (shares, tuple(values)) for name, values in found.items()}


def _inputs_of(model: nn.Module, names: set[str], inputs: object) -> dict[str, list[Tensor]]:
    """What each of some layers is called with in a forward pass, call by call."""
    found: dict[str, list[Tensor]] = {}

    def noter(name: str) -> Hook:
        return lambda layer, args: found.setdefault(name, []).append(args[0])

    with forward_hooks(model, {name: noter(name) for name in names}, pre=True):
        call(model, inputs)
    return found


def _seconds(layer: nn.Module, calls: Sequence[Tensor]) -> float:
    def run() -> None:
        for values in calls:
            layer(values)

    return median_seconds(run, calls[0].device)


def median_seconds(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median time of a call; the first one, which warms up, is not counted."""
    begin = time.perf_counter()
    _finished(run, device)
    again = max(1, round(SHORTEST / max(time.perf_counter() - begin, 1e-7)))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(again):
            run()
        _finished(lambda: None, device)
        times.append((time.perf_counter() - begin) / again)
    return statistics.median(times)


def _finished(run: Callable[[], object], device: torch.device) -> None:
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _ready(*models: nn.Module) -> Iterator[None]:
    with torch.no_grad():
        if not models:
            yield
            return
        with evaluating(models[0]), _ready(*models[1:]):
            yield


def time_both(
    first: nn.Module, second: nn.Module, inputs: object, images: int, repeats: int = REPEATS
) -> Timed:
    """Time two networks in turns on the same inputs.

    Args:
        first: A network, say the unpruned one.
        second: Another.
        inputs: What both are called with.
        images: How many images that is; for the record.
        repeats: Pairs of timings; their order changes from one to the next.
    """
    device = device_of(first)
    pairs = []
    with _ready(first, second):
        for number in range(repeats):
            order = [(0, first), (1, second)]
            pair = [0.0, 0.0]
            for place, model in order if number % 2 else reversed(order):
                pair[place] = median_seconds(lambda m=model: call(m, inputs), device, repeats=1)  # type: ignore[misc]
            pairs.append(pair)
    before = statistics.median(pair[0] for pair in pairs)
    ratios = [pair[1] / pair[0] for pair in pairs]
    ratio = statistics.median(ratios)
    return Timed(before, before * ratio, ratio, images, median_interval(ratios))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a median, from the ranks of its values: nothing is assumed of their spread.

    Below six values, no such interval is that sure; it is then all of their range.

    >>> median_interval([5.0, 1.0, 3.0])
    (1.0, 5.0)
    >>> median_interval([float(n) for n in range(1, 16)])
    (4.0, 12.0)
    """
    ordered = sorted(values)
    below = max(0, math.floor((len(ordered) - 1.96 * math.sqrt(len(ordered))) / 2))
    return ordered[below], ordered[-1 - below]
