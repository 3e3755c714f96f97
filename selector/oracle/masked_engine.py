"""The masked engine: the weights that read the channels are zero, and the whole network runs."""

from collections.abc import Sequence
from contextlib import ExitStack

from torch import nn

from selector.data.forward import call
from selector.network.compensation import Shift, shifted
from selector.network.groups import Group, masked

Removal = tuple[tuple[int, ...], tuple[Shift, ...]]
"""Channels removed from a group, and what their means add to the consumers' outputs."""


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
        for channels, shifts in removals:
            with ExitStack() as stack:
                stack.enter_context(masked(self._model, group, channels))
                stack.enter_context(shifted(self._model, shifts))
                found.append(call(self._model, self._inputs))
        return found
