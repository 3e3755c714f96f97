"""Engines of the oracle: the outputs of a network without some channels, three ways, one answer.

`reference` cuts the channels out physically and runs the rest; `masked` zeroes the weights that
read them and runs everything; `fast` keeps a batch's intermediate values and computes again only
what depends on the layers that read the channels.
"""

import warnings
from collections.abc import Sequence
from typing import Literal, Protocol
from weakref import WeakKeyDictionary

from torch import nn

from selector.data.forward import call, device_of
from selector.data.own_forward import own_forward
from selector.network.compensation import shifted
from selector.network.folding import folded
from selector.network.groups import Group
from selector.network.surgery import cuts_of, outputs_gone, temporarily_cut
from selector.oracle.fast_engine import Fast
from selector.oracle.fx_steps import UntraceableError
from selector.oracle.masked_engine import Masked, Removal

EngineName = Literal["fast", "masked", "reference"]


class Engine(Protocol):
    """Outputs of one batch with all channels, then without some."""

    def load(self, inputs: object) -> object:
        """Take a batch; its outputs with all channels."""

    def outputs(self, group: Group, removals: Sequence[Removal]) -> list[object]:
        """The batch's outputs after each of some removals from one group."""


class Reference:
    """Cut physically, run the rest: slow, and the judge of the others."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def load(self, inputs: object) -> object:
        """Take a batch; its outputs with all channels."""
        self._inputs = inputs
        return call(self._model, inputs)

    def outputs(self, group: Group, removals: Sequence[Removal]) -> list[object]:
        """The batch's outputs after each of some removals from one group."""
        found = []
        for removal in removals:
            cuts = cuts_of([(group, removal.channels)])
            with (
                temporarily_cut(self._model, [(group, removal.channels)]),
                folded(self._model, removal.folds, cuts),
                shifted(self._model, removal.shifts, outputs_gone(cuts)),
            ):
                found.append(call(self._model, self._inputs))
        return found


def make_engine(
    model: nn.Module, name: EngineName, *, check: bool = True, alone: bool = False
) -> Engine:
    """The engine of that name; where `fast` cannot trace the network, `masked` and a warning.

    Args:
        model: The network, in evaluation mode.
        name: Which.
        check: Try groups again that earlier engines of this network have tried.
        alone: Never run several candidates as one batch: images of a batch see each other.
    """
    if name == "reference":
        return Reference(model)
    if name == "masked" or own_forward(model) is not None:
        return Masked(model)
    try:
        on_cpu = device_of(model).type == "cpu"
        return Fast(model, together=1 if on_cpu or alone else 16, check=check)
    except UntraceableError as error:
        if model not in _told:
            _told[model] = True
            warnings.warn(f"the oracle runs whole forward passes: {error}", stacklevel=2)
        return Masked(model)


_told: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
