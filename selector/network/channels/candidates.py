"""Groups of channels by their labels: where the channels of each class lie, layer by layer."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from selector.network.attention import is_packed_attention
from selector.network.bare import is_bare, kept_place, kept_side, tensor_place
from selector.network.channels.classes import Classes, classes_of
from selector.network.channels.planes import varying
from selector.network.channels.trace import Traced
from selector.network.groups import OUTPUT, Group, Slice
from selector.network.layers import (
    CONVOLUTION,
    INSTANCE_NORMALISATION,
    NORMALISATION,
    is_depthwise,
    is_statistics_norm,
    output_dimension,
    reading_weights,
    removable,
    shared_side,
)
from selector.typing import Numbers, Side

TOGETHER = "these channels could only go all together"


@dataclass(frozen=True, eq=False)
class Place:
    """A side of a layer, with the class of every position."""

    layer: str
    side: Side
    classes: Numbers


class Candidates:
    """The groups of a traced network, for one reading of its slices."""

    def __init__(
        self,
        model: nn.Module,
        traced: Traced,
        literal: Collection[int] = (),
        ties: Sequence[Tensor] = (),
    ) -> None:
        """Candidates.

        Args:
            model: The network that was traced.
            traced: Its forward pass.
            literal: See `classes_of`.
            ties: Likewise.
        """
        self._model, self._traced = model, traced
        self.classes, self._mixed = classes_of(traced, literal, ties)
        self._places = _unique([*_places(model, traced, self.classes), *self._mixed_places()])
        self._signatures = _signatures(self._places)
        self.groups: dict[str, Group] = {}
        self.refused: dict[str, str] = {}
        self.channel_of: dict[str, dict[int, int]] = {}
        """Group -> class -> channel."""
        self._build()

    def _mixed_places(self) -> Iterator[Place]:
        """The tensors that mixing modules are called with, and norms without parameters."""
        for mixed in self._mixed:
            for d in varying(mixed.plane):
                labels = mixed.plane.movedim(d, 0).reshape(mixed.plane.shape[d], -1)[:, 0]
                classes = self.classes.of(labels)
                place = d - mixed.plane.ndim if d != 1 or mixed.plane.ndim < 3 else 1
                yield Place(
                    mixed.module,
                    kept_side(mixed.argument, place, given_back=mixed.given_back),
                    classes,
                )
                layer = self._model.get_submodule(mixed.module)
                if is_statistics_norm(layer) and not list(layer.parameters()):
                    yield Place(mixed.module, "both", classes)

    def _build(self) -> None:
        taken: set[int] = set()
        for name, layer in self._model.named_modules():
            makes = isinstance(layer, CONVOLUTION | nn.Linear) or is_packed_attention(layer)
            if not makes or is_depthwise(layer):
                continue
            if (root := self._places.get((name, "out"))) is None:
                continue
            loose = ~self.classes.stays(root.classes)
            if not loose.any():
                if not taken.intersection(root.classes.tolist()):
                    why = (self.classes.why.get(int(one)) for one in root.classes)
                    self.refused[name] = next((w for w in why if w), "it cannot be removed")
            else:
                self._add(name, root.classes[loose], taken)
            taken.update(root.classes.tolist())
        self._name_foreign_layers(taken)

    def _name_foreign_layers(self, taken: set[int]) -> None:
        """Say why layers of unknown kinds stay: both sides of their weight could lose channels."""
        sides: dict[tuple[str, str], list[bool]] = defaultdict(list)
        for place in self._places.values():
            bare = tensor_place(place.side)
            loose = place.classes[~self.classes.stays(place.classes)]
            if bare is not None and len(loose):
                sides[place.layer, bare[0]].append(taken.isdisjoint(loose.tolist()))
        for (name, attribute), unmade in sides.items():
            kind = type(self._model.get_submodule(name))
            if len(unmade) > 1 and any(unmade) and not kind.__module__.startswith("torch.nn"):
                self.refused[name] = (
                    f"{kind.__name__} {name!r} multiplies by its {attribute!r} in code of its own; "
                    "channels are made by nn.Linear, convolutions and attention alone, so put "
                    "nn.Linear with that weight, transposed where needed, in its place"
                )

    def _add(self, name: str, classes: Numbers, taken: set[int]) -> None:
        """Groups of classes that lie in the same places, as often in each."""
        alike: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
        for one in dict.fromkeys(classes.tolist()):
            if one not in taken:
                alike[tuple(self._signatures[one])].append(one)
        for signature, ones in sorted(alike.items(), key=lambda item: -len(item[1])):
            places = [list(self._places.values())[number] for number, _ in signature]
            ran = self._traced.ran
            names = [place.layer for place in places if place.side == "out" and place.layer in ran]
            free = next((n for n in names if n not in self.groups), None)
            if free is None:
                if not names:
                    self.refused.setdefault(name, "it is not called: other code uses its weight")
                continue
            why = self._why_not(places, ones)
            if why is None:
                self.channel_of[free] = {one: number for number, one in enumerate(ones)}
                self.groups[free] = self._group(free, places)
                self.refused.pop(free, None)
            else:
                self.refused.setdefault(free, why)

    def _group(self, name: str, places: Sequence[Place]) -> Group:
        channel, slices = self.channel_of[name], []
        for place in places:
            pairs = enumerate(place.classes.tolist())
            at = [(i, channel[one]) for i, one in pairs if one in channel]
            indices, channels = zip(*at, strict=True)
            # Where other code uses a layer's weight, nothing can be measured at the layer.
            idle = not is_bare(place.side) and place.layer not in self._traced.ran
            slices.append(Slice(place.layer, place.side, indices, channels, idle))
        return Group(name, len(channel), tuple(slices), 0.0, 0.0)

    def _why_not(self, places: Sequence[Place], ones: Sequence[int]) -> str | None:
        if len(ones) < 2:
            return self._together(ones[0])
        mixed = [p.layer for p in places if kept_place(p.side)]
        for place in places:
            layer = self._model.get_submodule(place.layer)
            if place.side in ("in", "out") and not removable(layer, place.side):
                return _why_not(place.layer, layer)
            inside = next((m for m in mixed if place.layer.startswith(f"{m}.")), None)
            if inside is not None and place.side in ("in", "out"):
                return f"{inside!r} takes statistics over them and reads or makes them, too"
        readers = [place.layer for place in places if place.side == "in"]
        if not readers:
            bare = next((place for place in places if tensor_place(place.side)), None)
            if bare is None:
                return OUTPUT
            return f"no layer but {bare.layer!r} reads it, and that is of an unknown kind"
        if not self._traced.ran.intersection(readers):
            return f"{readers[0]!r} reads it, and is not called: other code uses its weight"
        return None

    def _together(self, one: int) -> str:
        note = self.classes.noted(one)
        return TOGETHER if note is None else f"{note}: {TOGETHER}"


def _why_not(name: str, layer: nn.Module) -> str:
    kind = type(layer).__name__
    return f"{kind} {name!r} is a layer whose channels cannot be cut exactly"


def _unique(places: Sequence[Place]) -> dict[tuple[str, Side], Place]:
    found: dict[tuple[str, Side], Place] = {}
    for place in places:
        found.setdefault((place.layer, place.side), place)
    return found


def _signatures(places: Mapping[tuple[str, Side], Place]) -> dict[int, list[tuple[int, int]]]:
    """For every class, in which places it lies, and how often."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, place in enumerate(places.values()):
        names, counts = np.unique(place.classes, return_counts=True)
        for one, count in zip(names.tolist(), counts.tolist(), strict=True):
            found[one].append((number, count))
    return found


def _places(model: nn.Module, traced: Traced, classes: Classes) -> Iterator[Place]:
    """Sides of layers, and dimensions of bare parameters and buffers, in the network's order."""
    sources = defaultdict(list)
    for source in traced.ledger.sources:
        sources[source.tensor].append(source)
    for name, module in model.named_modules():
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            for source in sources.get(id(tensor), []):
                side = _side(module, attribute, source.dimension)
                if side is None:
                    continue
                found = classes.range(source.first, source.size)
                if isinstance(module, CONVOLUTION) and side == shared_side(module):
                    found = np.tile(found, module.groups)
                yield Place(name, side, found)


def _side(module: nn.Module, attribute: str, dimension: int) -> Side | None:
    """The side of a layer that a dimension of its tensor belongs to; None of one that follows."""
    if isinstance(module, CONVOLUTION | nn.Linear):
        if attribute != "weight":
            return None if attribute == "bias" else f"{attribute}[{dimension}]"
        if dimension > 1:
            return None
        if is_depthwise(module):
            return "both" if dimension == 0 else None
        return "out" if dimension == output_dimension(module) else "in"
    if is_packed_attention(module) and attribute.startswith("in_proj"):
        if attribute == "in_proj_bias":
            return None
        return "out" if dimension == 0 else "in"
    if isinstance(module, nn.RNNBase) and attribute in reading_weights(module) and dimension == 1:
        return "in"
    kinds = NORMALISATION | INSTANCE_NORMALISATION | nn.PReLU
    if isinstance(module, kinds) or is_statistics_norm(module):
        return "both"
    return f"{attribute}[{dimension}]"
