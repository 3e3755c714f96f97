"""Proposals as values, and the table of them: `PROPOSALS: name -> proposal`.

A proposal answers what is known of a group, and how many channels go, with a *set*; a metric's
ranking is the special case. A new one is a function and a decorator:

```python
@selector.register_proposal("every_other", needs="weights", source="our own")
def every_other(signals, count):
    '''Even channels first.'''
    order = [*range(0, signals.channels, 2), *range(1, signals.channels, 2)]
    return order[:count]
```

Then `selector.prune(model, batches, criterion="every_other", ratio=0.3)` uses it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from selector.errors import SelectorError
from selector.saliency.proposals.joint import joint
from selector.saliency.proposals.reconstruction import (
    column_subset,
    column_subsets,
    reconstruction,
    reconstruction_fisher,
    reconstructions,
    reconstructions_fisher,
)
from selector.saliency.registry import METRICS, RESERVED, Metric
from selector.saliency.scoring import lowest
from selector.statistics.channel_statistics import Signals
from selector.statistics.gradient_source import Gradients
from selector.statistics.statistic import Need, checked_needs

Propose = Callable[[Signals, int], Iterable[int]]
"""(signals, count) -> the channels that go: `count` different ones, in any order."""

Orders = Callable[[Sequence[Signals]], list[list[int]]]
"""Signals of several groups -> all but one of each group's channels, in the order they go."""

Kind = Literal["set", "ranking"]


@dataclass(frozen=True)
class Proposal:
    """A way to choose a set of channels: what it proposes, what it needs, where it comes from."""

    name: str
    propose: Propose
    needs: frozenset[Need]
    """Passes and statistics, as of a metric."""
    source: str
    kind: Kind = "set"
    """Whether it chooses whole sets, or the lowest channels of one order."""
    gradients: Gradients = "labels"
    """What is differentiated where it needs gradients; `softened` needs no labels."""
    nested: bool = False
    """Whether it names channels in the order in which they go, whatever their number, so that one
    order answers for every number."""
    orders: Orders | None = None
    """The whole orders of several groups at once, but for the last channel; of a nested proposal
    for which that is quicker than group after group."""

    @classmethod
    def ranking(cls, metric: Metric) -> "Proposal":
        """The lowest channels of a metric."""

        def propose(signals: Signals, count: int) -> tuple[int, ...]:
            return lowest(metric(signals), count)

        propose.__doc__ = metric.summary
        return cls(metric.name, propose, metric.needs, metric.source, "ranking")

    @property
    def listed_needs(self) -> str:
        """The needs in words: `input_products`."""
        return ", ".join(sorted(self.needs))

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return ((self.propose.__doc__ or "").strip().splitlines() or [""])[0]

    def checked(self, group: str, signals: Signals, count: int) -> tuple[int, ...]:
        """The channels that go from a group, sorted; see `ordered`."""
        return tuple(sorted(self.ordered(group, signals, count)))

    def ordered(self, group: str, signals: Signals, count: int) -> tuple[int, ...]:
        """The channels that go from a group, in the order in which they are proposed.

        Args:
            group: Its name, for messages.
            signals: What is known of it.
            count: How many go, fewer than the group has.

        Raises:
            SelectorError: The group lacks what the proposal needs, or the proposal is no set of
                `count` different channels of the group; both are named.
        """
        if "normalisation" in self.needs and signals.normalisation_scale is None:
            raise SelectorError(
                f"proposal {self.name!r} needs normalisation, and group {group!r} has none; name "
                "the group in ignore, or use another criterion"
            )
        try:
            proposed: object = self.propose(signals, count)
        except SelectorError as error:
            raise SelectorError(f"proposal {self.name!r}, in group {group!r}: {error}") from error
        found = self._channels(proposed, group)
        different = set(found)
        wrong = different.difference(range(signals.channels))
        if wrong:
            first = next(channel for channel in found if channel in wrong)
            fault = f"channel {first}, and there are 0 to {signals.channels - 1}"
        elif len(different) < len(found):
            fault = f"channel {min(c for c in different if found.count(c) > 1)} twice"
        elif len(found) != count:
            fault = f"{len(found)} channels, and {count} must go"
        else:
            return tuple(found)
        raise SelectorError(
            f"proposal {self.name!r} names {fault}, in group {group!r}; it must give as many "
            "different channels as it is asked for"
        )

    def _channels(self, found: object, group: str) -> list[int]:
        values = found.tolist() if isinstance(found, Tensor | np.ndarray) else found
        listed = list(values) if isinstance(values, Iterable) else None
        kinds = set(map(type, listed or ()))
        whole = bool not in kinds and all(issubclass(kind, int | np.integer) for kind in kinds)
        if listed is None or not whole:
            raise SelectorError(
                f"proposal {self.name!r} gives {found!r} in group {group!r}, not the numbers of "
                "the channels that go"
            )
        return [int(value) for value in listed]


PROPOSALS: dict[str, Proposal] = {}
"""Name -> proposal, in the order in which they are listed."""


def register_proposal(
    name: str,
    *,
    needs: Need | Iterable[Need] = "backward",
    source: str = "",
    gradients: Gradients = "labels",
    nested: bool = False,
) -> Callable[[Propose], Propose]:
    """Add a proposal to the table: `choose`, `prune` and the command line pick it up.

    Args:
        name: A new name, letters, digits and underscores.
        needs: What must be measured, one name or several, as of a metric; `input_products` and
            `gradient_products` are the statistics that `reconstruction` reads.
        source: Paper or origin.
        gradients: What is differentiated: `labels`, the loss, or `softened`, the network's own
            softened outputs, which needs no labels.
        nested: Whether channels are named in the order in which they go, whatever their number: a
            selector that asks for many numbers then asks once.

    Raises:
        SelectorError: The name is taken or no name; unknown `needs` or `gradients`.
    """
    checked = checked_needs(needs)
    if gradients not in get_args(Gradients):
        raise SelectorError(
            f"unknown gradients={gradients!r}; known: {', '.join(get_args(Gradients))}"
        )

    def register(propose: Propose) -> Propose:
        if not name.isidentifier():
            raise SelectorError(
                f"proposal name {name!r} must be made of letters, digits and underscores"
            )
        if name in PROPOSALS or name in METRICS or name in RESERVED:
            raise SelectorError(f"proposal {name!r} is taken; choose another name")
        PROPOSALS[name] = Proposal(
            name, propose, checked, source, gradients=gradients, nested=nested
        )
        return propose

    return register


def _add(
    name: str,
    propose: Propose,
    needs: Iterable[Need],
    source: str,
    gradients: Gradients = "labels",
    orders: Orders | None = None,
) -> None:
    nested = orders is not None
    PROPOSALS[name] = Proposal(
        name, propose, checked_needs(needs), source, "set", gradients, nested, orders
    )


_PAIRS = ("forward", "pairs")
_INPUTS = ("input_products",)
_add("reconstruction", reconstruction, _INPUTS, "arXiv 2403.12983", orders=reconstructions)
_add(
    "reconstruction_fisher",
    reconstruction_fisher,
    (*_INPUTS, "gradient_products"),
    "arXiv 1905.05934",
    "softened",
    reconstructions_fisher,
)
_add("joint_0", joint(0.0), _PAIRS, "this project")
_add("joint_half", joint(0.5), _PAIRS, "this project")
_add("joint_1", joint(1.0), _PAIRS, "this project")
_add("joint_softened", joint(0.0, "softened outputs"), _PAIRS, "this project", "softened")
_add("column_subset", column_subset, _INPUTS, "arXiv 0812.4293", orders=column_subsets)
PROPOSALS["rank_mean"] = Proposal.ranking(METRICS["rank_mean"])
