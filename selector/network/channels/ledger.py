"""What a forward pass says of labels: which go together, which stay, where there is a choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selector.network.channels.planes import FIXED, Value, lines, narrowed, varying, vector

Pairs = Tensor
"""Labels that go together, shape (2, pairs)."""


def pairs_of(one: Tensor, other: Tensor) -> Pairs:
    """Labels at the same places of two planes that broadcast."""
    one, other = torch.broadcast_tensors(one, other)  # type: ignore[no-untyped-call]
    keep = sorted({*varying(one), *varying(other)})
    return torch.stack([narrowed(p, keep).reshape(-1) for p in (one, other)])


def merging(plane: Tensor, dimensions: Sequence[int]) -> Pairs:
    """Labels that go together so that nothing varies along these dimensions."""
    first = plane
    for d in dimensions:
        first = first.narrow(d, 0, 1)
    return pairs_of(plane, first.expand_as(plane))


@dataclass(frozen=True, eq=False)
class Choice:
    """An operation that stays right in several ways; the one that leaves most channels is taken."""

    options: tuple[Pairs, ...]
    """What goes together in each."""


@dataclass(frozen=True, eq=False)
class Mixing:
    """An operation that takes a statistic over channels: removal changes it for all the others."""

    labels: Tensor
    pairs: Pairs
    """What goes together where no module can be run on the channels that are kept."""
    calls: tuple[int, ...]
    """The calls of modules in which it happens, outermost first."""
    what: str


@dataclass(frozen=True, eq=False)
class Listed:
    """Sizes that a module keeps in a list, with what they are the sizes of: parts, or a shape."""

    module: str
    attributes: tuple[str, ...]
    """Lists of the module that hold these very sizes."""
    labels: tuple[Tensor | None, ...]
    """For every size, shape (positions, labels at each); None where there are no channels."""


@dataclass(frozen=True)
class Source:
    """A dimension of a parameter or buffer, whose positions are labels."""

    tensor: int
    """Identity of the parameter or buffer."""
    dimension: int
    first: int
    """Label of position 0."""
    size: int


@dataclass
class Ledger:
    """Collects ties while a network runs."""

    pairs: list[Pairs] = field(default_factory=list)
    fixed: list[tuple[Tensor, str]] = field(default_factory=list)
    """Labels that cannot be removed, and why."""
    choices: list[Choice] = field(default_factory=list)
    mixings: list[Mixing] = field(default_factory=list)
    literal: list[tuple[Pairs, Tensor]] = field(default_factory=list)
    """Ties of slices: pairs where their bounds follow the width, labels that stay where not."""
    sources: list[Source] = field(default_factory=list)
    notes: list[tuple[Tensor, str]] = field(default_factory=list)
    """Labels, and what makes so many of them go together."""
    sizes: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    """Module -> the lists of numbers that it keeps, by attribute."""
    listed: list[Listed] = field(default_factory=list)
    labels: int = 1
    calls: tuple[int, ...] = ()
    """The calls of modules that run now, outermost first."""
    module: str = ""
    """The innermost of these modules."""
    _known: dict[int, Value] = field(default_factory=dict)

    def tie(self, one: Tensor, other: Tensor, why: str = "they are joined with others") -> None:
        """Labels at the same places go together; those that meet a fixed one stay."""
        found = pairs_of(one, other)
        loose = (found == FIXED).any(0)
        if bool(loose.any()):
            self.fix(found[:, loose], why)
            found = found[:, ~loose]
        if found.numel():
            self.pairs.append(found)

    def fix(self, labels: Tensor, why: str) -> None:
        """Labels that cannot be removed."""
        found = narrowed(labels).reshape(-1)
        self.fixed.append((found[found != FIXED], why))

    def note(self, labels: Tensor, what: str) -> None:
        """What makes labels go together, for whoever asks why so many do."""
        self.notes.append((narrowed(labels).reshape(-1), what))

    def part(self, planes: Sequence[Tensor], dimension: int, sizes: Sequence[int]) -> bool:
        """Whether the running module keeps the sizes of these parts; they are noted then."""
        return self._list([lines(plane, dimension) for plane in planes], sizes)

    def shape(self, plane: Tensor) -> None:
        """Note the lists of the running module that hold the last sizes of a plane."""
        labels = [lines(plane, d) if d in varying(plane) else None for d in range(plane.ndim)]
        for first in range(plane.ndim):
            if any(found is not None for found in labels[first:]):
                self._list(labels[first:], plane.shape[first:])

    def _list(self, labels: Sequence[Tensor | None], sizes: Sequence[int]) -> bool:
        kept = self.sizes.get(self.module, {})
        names = tuple(name for name, found in kept.items() if found == tuple(sizes))
        if names:
            self.listed.append(Listed(self.module, names, tuple(labels)))
        return bool(names)

    def choose(self, *options: Pairs) -> None:
        """One of these ties will be needed."""
        self.choices.append(Choice(options))

    def parameter(self, tensor: Tensor) -> Value:
        """The value of a parameter or buffer: its own labels along every dimension."""
        key = id(tensor)
        if key not in self._known:
            planes = []
            for d, size in enumerate(tensor.shape):
                if size > 1:
                    self.sources.append(Source(key, d, self.labels, size))
                    numbers = torch.arange(self.labels, self.labels + size)
                    planes.append(vector(numbers, tensor.shape, d))
                    self.labels += size
            self._known[key] = Value(tuple(planes), weight=True)
        return self._known[key]
