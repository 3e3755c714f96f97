"""The own index mapping of one network: groups in several readings, for the law to choose from.

Where code says `x[:, :n]` or `view(b, 8, -1)`, a trace shows numbers and not where they come from.
They may follow the width, stand in an attribute of the module, be written down, or be the width of
another tensor. So there are several readings of a group.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from selector.network.bare import numbers_of
from selector.network.channels.candidates import Candidates
from selector.network.channels.classes import Classes
from selector.network.channels.ledger import Listed
from selector.network.channels.planes import lines, varying
from selector.network.channels.trace import Traced, trace_channels
from selector.network.groups import Group, Slice
from selector.network.layers import CONVOLUTION, NORMALISATION, is_statistics_norm
from selector.typing import Numbers, Side

LAYERS = CONVOLUTION | nn.Linear | NORMALISATION
EQUAL_WIDTHS = "equal widths"
"""The reading in which tensors that a module's own code sees at one width keep one width."""


@dataclass(frozen=True, eq=False)
class Reading:
    """The groups of one reading of a network's slices."""

    groups: Mapping[str, Group]
    refused: Mapping[str, str]
    numbered: Mapping[str, Group]
    """Those groups with the numbers that modules keep of their channels."""


class ChannelMapping:
    """Where the channels of a network lie, found by labels."""

    def __init__(self, model: nn.Module, inputs: object) -> None:
        """Run the network once.

        Args:
            model: The network, in evaluation mode; left as found.
            inputs: A few images.
        """
        self._model = model
        self._traced = trace_channels(model, inputs)
        ledger = self._traced.ledger
        self.plain = not (ledger.mixings or ledger.choices or ledger.literal or ledger.listed)
        """Nothing but layers, additions and concatenations: any graph can be trusted with it."""
        self._extents: dict[str, list[Numbers]] = {}
        for extent in self._traced.extents:
            if _has_own_code(model, extent.module):
                labels = np.asarray(extent.labels.numpy(), dtype=np.intp)
                self._extents.setdefault(extent.module, []).append(labels)

        self._listed = _listed(ledger.listed)

    def readings(self) -> list[Reading]:
        """The groups as they are if slices follow the width, and if they do not."""
        slices = range(len(self._traced.ledger.literal))
        readings = [self._reading("labels", self._first)]
        if slices:
            bound = Candidates(self._model, self._traced, slices)
            readings.append(self._reading("labels, fixed bounds", bound))
        return readings

    @cached_property
    def _first(self) -> Candidates:
        """The candidates if slices follow the width."""
        return Candidates(self._model, self._traced)

    def tied(self, names: Collection[str]) -> list[Reading]:
        """The groups if tensors of equal width keep equal widths; none where nothing is tied.

        Code may take the width of one tensor for that of another: `self.reduce(x).view(b, c, -1)`
        with the width c of x.

        Args:
            names: Groups of the first reading that are tied, where a module's own code sees them.
        """
        first = self._first
        wanted = {one for name in names for one in first.channel_of.get(name, ())}
        ties = _equal_widths(self._model, self._traced, first.classes, wanted)
        if not ties:
            return []
        return [self._reading(EQUAL_WIDTHS, Candidates(self._model, self._traced, ties=ties))]

    def _reading(self, what: str, found: Candidates) -> Reading:
        numbered = {}
        for name, group in found.groups.items():
            parts = tuple(self._kept_numbers(found, group))
            if parts:
                slices = group.slices + parts
                numbered[name] = replace(group, slices=slices, reading=f"{what}, numbers")
        groups = {name: replace(group, reading=what) for name, group in found.groups.items()}
        return Reading(groups, found.refused, numbered)

    def _kept_numbers(self, found: Candidates, group: Group) -> Iterator[Slice]:
        channel_of = found.channel_of[group.name]
        for (name, side), parts in self._listed.items():
            places = [_positions(found.classes.of_labels(part), channel_of) for part in parts]
            if (slice_ := _slice(name, side, [place for place in places if place])) is not None:
                yield slice_
        for name, extents in self._extents.items():
            numbers = numbers_of(self._model.get_submodule(name))
            for side, value in numbers.items():
                places = [
                    place
                    for labels in extents
                    if len(labels) == value
                    and (place := _positions(found.classes.of_labels(labels), channel_of))
                ]
                if (slice_ := _slice(name, side, places)) is not None:
                    yield slice_


def _has_own_code(model: nn.Module, name: str) -> bool:
    module = model.get_submodule(name)
    return not isinstance(module, LAYERS) and not is_statistics_norm(module)


def _equal_widths(
    model: nn.Module, traced: Traced, classes: Classes, wanted: set[int]
) -> list[Tensor]:
    """Labels at the same positions of what a module's code sees at one width, shape (2, pairs)."""
    seen: dict[tuple[str, int], dict[int, Tensor]] = {}
    extents = [(extent.module, extent.labels) for extent in traced.extents]
    for call in traced.calls:
        for plane in (plane for value in call.inputs for plane in value.planes):
            extents += [(call.module, lines(plane, d)) for d in varying(plane)]
    for module, labels in extents:
        if labels.shape[1] == 1 and _has_own_code(model, module):
            line = labels[:, 0]
            if wanted.issuperset(classes.of(line).tolist()):
                seen.setdefault((module, len(line)), {})[int(line[0])] = line
    return [
        torch.stack([first, other])
        for first, *others in (list(found.values()) for found in seen.values())
        for other in others
    ]


def _listed(found: Sequence[Listed]) -> dict[tuple[str, Side], list[Numbers]]:
    """Module and place in a list of sizes -> labels of whatever it is the size of."""
    every: dict[tuple[str, Side], list[Numbers]] = {}
    for one in found:
        for attribute, (number, labels) in product(one.attributes, enumerate(one.labels)):
            if labels is not None:
                key = one.module, f".{attribute}[{number}]"
                every.setdefault(key, []).append(np.asarray(labels.numpy(), dtype=np.intp))
    return every


def _positions(classes: Numbers, channel_of: Mapping[int, int]) -> list[tuple[int, int]]:
    """Positions of a dimension that belong to one channel of a group as a whole."""
    same = (classes == classes[:, :1]).all(1)
    rows = classes[:, 0].tolist()
    return [(i, channel_of[c]) for i, c in enumerate(rows) if same[i] and c in channel_of]


def _slice(name: str, side: Side, places: Sequence[Sequence[tuple[int, int]]]) -> Slice | None:
    """The place of a number, where whatever it is the size of loses as many positions."""
    if not places or len({_counts(place) for place in places}) != 1:
        return None
    indices, channels = zip(*places[0], strict=True)
    return Slice(name, side, indices, channels)


def _counts(place: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    channels = [channel for _, channel in place]
    return tuple(np.bincount(channels).tolist())
