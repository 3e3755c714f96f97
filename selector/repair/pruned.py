"""A pruned network as repairs take it: the network alone, or the result of `prune`."""

from typing import Protocol

from torch import nn

from selector.errors import SelectorError
from selector.network.surgery import Cut


class Pruned(Protocol):
    """What `prune` returns, as far as repairs use it."""

    @property
    def model(self) -> nn.Module:
        """The pruned network."""

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """What every layer lost, in the positions of the unpruned network."""


def parts_of(pruned: nn.Module | Pruned) -> tuple[nn.Module, tuple[Cut, ...] | None]:
    """The network, and what its layers lost; None where only the network is known.

    Raises:
        SelectorError: Neither a network nor a result.
    """
    if isinstance(pruned, nn.Module):
        return pruned, None
    if not hasattr(pruned, "model") or not hasattr(pruned, "cuts"):
        raise SelectorError(
            f"pruned must be a network or the result of prune, not a {type(pruned).__name__}"
        )
    return pruned.model, tuple(pruned.cuts)
