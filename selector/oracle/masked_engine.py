"""The masked engine: the weights that read the channels are zero, and the whole network runs."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from torch import nn

from selector.data.forward import call
from selector.network.compensation import Shift, shifted
from selector.network.folding import Fold, folded
from selector.network.groups import Group
from selector.network.masking import masked


class Removal(NamedTuple):
    """Channels removed from a group, and what stands for them."""

    channels: tuple[int, ...]
    shifts: tuple[Shift, ...] = ()
    """What is added to the consumers' outputs."""
    folds: tuple[Fold, ...] = ()
    """The consumers' weights with what went folded into what stays."""


class Masked:
    """Zero the weights that read the channels, run the whole network."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def take(self, inputs: object) -> None:
        """Take a batch, without running it."""
        self._inputs = inputs

    def load(self, inputs: object) -> object:
        """Take a batch; its outputs with all channels."""
        self.take(inputs)
        return call(self._model, inputs)

    def outputs(self, group: Group, removals: Sequence[Removal]) -> list[object]:
        """The batch's outputs after each of some removals from one group."""
        found = []
        for removal in removals:
            with ExitStack() as stack:
                stack.enter_context(masked(self._model, group, removal.channels))
                stack.enter_context(folded(self._model, removal.folds))
                stack.enter_context(shifted(self._model, removal.shifts))
                found.append(call(self._model, self._inputs))
        return found
