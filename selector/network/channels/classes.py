"""Labels that can only go together: the classes that a ledger's ties make."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selector.network.channels.ledger import Choice, Ledger, Mixing
from selector.network.channels.planes import FIXED, Value, narrowed
from selector.network.channels.trace import Traced
from selector.typing import Numbers


@dataclass(frozen=True, eq=False)
class MixedModule:
    """A module that takes statistics over channels, and can be run on those that are kept."""

    module: str
    argument: int
    """Which of the tensors that it is called with has the channels."""
    plane: Tensor
    """The labels of that tensor."""
    given_back: bool
    """Whether its outputs have these channels, too; else none of them."""
    what: str


class Classes:
    """A partition of all labels, with the classes that have to stay."""

    def __init__(self, ledger: Ledger) -> None:
        """Every label for itself, joined by the ties that hold in any case."""
        self._of: Numbers = np.arange(ledger.labels)
        self.why: dict[int, str] = {}
        self._notes: list[tuple[Tensor, str]] = []
        self.join(ledger.pairs)
        for labels, why in ledger.fixed:
            self.fix(labels, why)

    def of(self, labels: Tensor) -> Numbers:
        """The class of every label."""
        found: Numbers = self._of[labels.numpy()]
        return found

    def of_labels(self, labels: Numbers) -> Numbers:
        """The same of an array."""
        found: Numbers = self._of[labels]
        return found

    def range(self, first: int, size: int) -> Numbers:
        """The classes of labels in a row."""
        return self._of[first : first + size]

    def fix(self, labels: Tensor, why: str) -> None:
        """Labels that stay, and their classes with them."""
        for one in np.unique(self._of[narrowed(labels).reshape(-1).numpy()]):
            if one != FIXED:
                self.why.setdefault(int(one), why)

    def note(self, labels: Tensor, what: str) -> None:
        """What makes labels go together."""
        self._notes.append((labels, what))

    def noted(self, one: int) -> str | None:
        """What makes the labels of a class go together, as far as it is known."""
        return next((what for labels, what in self._notes if one in self.of(labels)), None)

    def stays(self, classes: Numbers) -> np.ndarray:
        """Whether each class has to stay."""
        return np.isin(classes, np.fromiter((FIXED, *self.why), dtype=np.intp))

    def join(self, ties: Sequence[Tensor], why: str = "they are joined with others") -> None:
        """Join the classes of labels that go together."""
        if not ties:
            return
        ones, others = self._of[torch.cat(list(ties), 1).numpy()]
        self._merge(ones, others, why)

    def _merge(self, ones: Numbers, others: Numbers, why: str) -> None:
        loose = (ones == FIXED) ^ (others == FIXED)
        met = np.maximum(ones, others)[loose]
        ones, others = ones[~loose], others[~loose]
        names, labels = _components(ones, others)
        reasons = [(int(one), self.why[one]) for one in names.tolist() if one in self.why]
        table = np.arange(len(self._of))
        table[names] = labels
        self._of = table[self._of]
        for one, reason in reasons:
            self.why.setdefault(int(table[one]), reason)
        for one in np.unique(table[met]):
            self.why.setdefault(int(one), why)

    def choose(self, choice: Choice) -> None:
        """Join by the option that leaves most classes that can go."""
        options = [self._of[option.numpy()] for option in choice.options]
        everything = np.unique(np.concatenate([option.reshape(-1) for option in options]))
        best = max(range(len(options)), key=lambda i: (self._left(everything, *options[i]), -i))
        ones, others = options[best]
        self._merge(ones, others, "they are joined with others")

    def _left(self, everything: Numbers, ones: Numbers, others: Numbers) -> int:
        names, labels = _components(np.append(ones, everything), np.append(others, everything))
        stays = set(labels[self.stays(names)].tolist())
        return len(set(labels.tolist()) - stays)


def _components(ones: Numbers, others: Numbers) -> tuple[Numbers, Numbers]:
    """The classes that are named, and for each the smallest one that it is joined with."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, numbers = np.unique(np.append(ones, others), return_inverse=True)
    numbers = numbers.reshape(2, -1)
    shape = (len(names), len(names))
    ties = coo_array((np.ones(numbers.shape[1], dtype=bool), tuple(numbers)), shape=shape)
    _, parts = connected_components(ties, directed=False)
    smallest = np.full(int(parts.max(initial=-1)) + 1, np.iinfo(np.intp).max)
    np.minimum.at(smallest, parts, names)
    return names, smallest[parts]


def classes_of(
    traced: Traced, literal: Collection[int] = (), ties: Sequence[Tensor] = ()
) -> tuple[Classes, list[MixedModule]]:
    """Resolve everything that a trace has left open.

    Args:
        traced: A forward pass with labels.
        literal: Numbers of slices whose bounds are taken for numbers that do not follow the width.
        ties: Labels that are taken to go together beyond what the trace says, shape (2, pairs).

    Returns:
        The classes, and the modules that have to be run on the channels that are kept.
    """
    ledger = traced.ledger
    classes = Classes(ledger)
    classes.join(ties)
    for number, (pairs, stays) in enumerate(ledger.literal):
        if number in literal:
            classes.fix(stays, "its channels are taken apart at fixed numbers")
        else:
            classes.join([pairs])
    mixed = []
    for mixing in ledger.mixings:
        module = _mixed_module(traced, classes, mixing)
        if module is None:
            classes.join([mixing.pairs])
            classes.note(mixing.labels, f"{mixing.what} over all of them")
        else:
            mixed.append(module)
    for choice in ledger.choices:
        classes.choose(choice)
    for labels, what in ledger.notes:
        classes.note(labels, what)
    return classes, mixed


def _mixed_module(traced: Traced, classes: Classes, mixing: Mixing) -> MixedModule | None:
    """The smallest module around an operation that gives back the channels it is called with.

    Or that reads all of them and gives back none: a layer may take statistics over its weight.
    """
    mixed = set(classes.of(mixing.labels).tolist())
    for number in reversed(mixing.calls):
        call = traced.calls[number]
        if not call.module or not call.outputs:
            continue
        given = [any(True for _ in _planes(classes, v.planes, mixed)) for v in call.outputs]
        if all(given) or not _meet(classes, call.outputs, mixed):
            for place, value in enumerate(call.inputs):
                for plane in _planes(classes, value.planes, mixed):
                    return MixedModule(call.module, place, plane, all(given), mixing.what)
    return None


def _meet(classes: Classes, values: Sequence[Value], wanted: set[int]) -> bool:
    """Whether any of these classes is there."""
    planes = [narrowed(plane).reshape(-1) for value in values for plane in value.planes]
    return any(wanted.intersection(classes.of(plane).tolist()) for plane in planes)


def _planes(classes: Classes, planes: Sequence[Tensor], wanted: set[int]) -> Iterator[Tensor]:
    """Those planes that hold exactly these classes."""
    for plane in planes:
        if set(classes.of(narrowed(plane).reshape(-1)).tolist()) == wanted:
            yield plane
