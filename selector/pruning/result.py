"""What pruning returns: the smaller network, how it came about, and the error that keeps it."""

from dataclasses import dataclass

from torch import nn

from selector.errors import SelectorError
from selector.network.surgery import Cut
from selector.planning.plan import Plan
from selector.pruning.report import Report


@dataclass(frozen=True, eq=False, repr=False)
class PruneResult:
    """A smaller network, and how it came about."""

    model: nn.Module
    """The pruned copy; the caller's network is as it was."""
    plan: Plan
    """All rounds as one plan, in the channel numbers of the unpruned network."""
    rounds: tuple[Plan, ...]
    """The plan of each round, in the channel numbers that the network had then."""
    report: Report
    unpruned: nn.Module
    """The caller's network; `rebind` finds an optimizer's parameters by it."""
    cuts: tuple[Cut, ...]
    """What all rounds took from every layer, in the positions of the unpruned network."""

    def __repr__(self) -> str:
        """The network's class, and the report on one line."""
        return f"PruneResult({type(self.model).__name__}, {self.report!r})"

    def _repr_html_(self) -> str:
        """The report's tables, for notebooks."""
        return self.report._repr_html_()


class PruningError(SelectorError):
    """Pruning had to stop in some round; `result` holds the network as it was before that round.

    Whatever stopped it (an error of the user's own code, memory, Ctrl-C) is its `__cause__`.
    """

    result: PruneResult
