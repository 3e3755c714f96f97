"""Statistics as values: what a pass over the data sums up for metrics, and how one is declared.

A metric names what it `needs`: passes over the network (`PASSES`), or statistics by name. A new
statistic is one function and one decorator, next to the metric that needs it:

```python
@selector.register_statistic("saturated", requires="forward")
def saturated(call):
    '''How many positions are beyond one, summed over images.'''
    return (call.values.abs() > 1).double().sum((0, 2))

@selector.register_metric("saturation", needs="saturated", source="our own")
def saturation(signals):
    '''Share of positions that are not saturated.'''
    return 1 - signals.statistic("saturated") / signals.at_consumers.positions
```
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from torch import Tensor, nn

from selector.errors import SelectorError, nearest
from selector.network.input_products import sampled as sampled_positions

Need = str
"""A pass of `PASSES`, or the name of a statistic."""

PASSES: Mapping[Need, frozenset[Need]] = {
    "weights": frozenset(),
    "normalisation": frozenset(),
    "forward": frozenset(),
    "backward": frozenset({"forward"}),
    "pairs": frozenset({"backward"}),
    "second_order": frozenset({"backward"}),
    "hessian": frozenset({"backward"}),
    "flow": frozenset(),
    "maps": frozenset({"forward"}),
}
"""What a metric may need -> what that needs in turn.

Weights alone; a BatchNorm between; a forward pass; a backward pass; products of every two channels'
effects; a second backward pass of projected outputs; a second pass over the data for Hessian x
gradient; a pass of absolute weights on all-ones input; ranks and independence of whole maps.
"""

FIRST_ORDER: frozenset[Need] = frozenset({"weights", "normalisation", "forward", "backward"})
"""Needs that one plain forward and backward pass meets."""

FORWARD: frozenset[Need] = frozenset({"forward"})

PAIRS: frozenset[Need] = frozenset({"forward", "pairs"})
"""What decisions need as well as the metrics: how sets of channels act together."""

Where = Literal["consumers", "producers"]
Moment = Literal["call", "gradient", "batch"]


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer on a batch, seen at its measuring point."""

    layer: nn.Module
    values: Tensor
    """A consumer's inputs, or a producer's outputs, shape (images, width, positions)."""
    sums: Tensor
    """Their sum, sum of absolutes and sum of squares over positions, (3, images, width)."""
    gradient: Tensor | None = None
    """Gradient of each image's loss with respect to `values`, once it is known."""
    channels: int = 0
    """For a statistic by consumer: the group's channels. `values`, `sums` and `gradient` then hold
    the group's inputs alone, those of one channel next to each other, in the order of channels."""
    share: float = 1.0
    """For a sampled statistic: the share of the positions that `values` and `gradient` hold; `sums`
    are over all of them."""

    @cached_property
    def sampled(self) -> "LayerCall":
        """The call at a few positions of every map."""
        values = sampled_positions(self.values)
        gradient = None if self.gradient is None else sampled_positions(self.gradient)
        share = values.shape[2] / max(1, self.values.shape[2])
        return replace(self, values=values, gradient=gradient, share=share)


@dataclass(frozen=True)
class PointBatch:
    """A batch at one measuring point of a group, summed over layers and positions."""

    quantities: Mapping[str, Tensor]
    """Quantity -> its sum, sum of absolutes and sum of squares over positions, shape
    (3, images, channels); quantities are those of `MeasuringPoint`."""
    maps: Sequence[Tensor]
    """Where a statistic asks for whole maps: one tensor for every call of a consumer, (images,
    channels, rows, columns)."""

    def total(self, quantity: str) -> Tensor:
        """A quantity summed over the positions of each image, shape (images, channels)."""
        return self.quantities[quantity][0]


@dataclass(frozen=True)
class GroupBatch:
    """A batch at both measuring points of a group, when all layers have run."""

    consumers: PointBatch
    producers: PointBatch


@dataclass(frozen=True)
class Statistic:
    """A sum over images that a pass makes for every group."""

    name: str
    compute: Callable[..., Tensor]
    """What one call or one batch adds; float64 where sums are long."""
    of: Moment
    """`call` and `gradient`: `compute(call)` of every `LayerCall`, gives shape (width,), summed
    into channels; `gradient` runs when the call's gradient is known. `batch`: `compute(batch)` of
    every `GroupBatch`, any shape."""
    requires: frozenset[Need]
    where: Where = "consumers"
    by_input: bool = False
    """Whether a consumer's inputs are kept apart: see `ConsumerInput.statistics`."""
    by_consumer: bool = False
    """Whether `compute` sees the group's inputs of one consumer and may give any shape: see
    `ConsumerInput.products`."""
    sampled: bool = False
    """Whether `compute` sees a few positions of every map only: see `LayerCall.share`."""
    whole_maps: bool = False
    """Whether `compute` looks at `PointBatch.maps`."""
    expensive: bool = False
    """Whether it is measured only for metrics that are asked for by name."""
    asked_by: frozenset[Need] = frozenset()
    """Passes that bring it without its being named."""


STATISTICS: dict[str, Statistic] = {}
"""Name -> statistic, in the order in which they were declared."""


def register_statistic(
    name: str,
    *,
    requires: Need | Iterable[Need] = "forward",
    of: Moment = "call",
    where: Where = "consumers",
    by_input: bool = False,
    by_consumer: bool = False,
    sampled: bool = False,
    whole_maps: bool = False,
    expensive: bool = False,
    asked_by: Iterable[Need] = (),
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Declare a statistic: metrics that name it in `needs` read it as `signals.statistic(name)`.

    The sum over the images of every call or batch is added up, and divided by their number.

    Args:
        name: A new name, letters, digits and underscores.
        requires: The passes that it takes, as in `PASSES`.
        of: When the function runs; see `Statistic.of`.
        where: The measuring point of a statistic of calls.
        by_input: Keep a consumer's inputs apart instead of summing them into channels.
        by_consumer: Keep consumers apart; what a call adds may have any shape.
        sampled: Show a call at `POSITIONS` positions of every map only, the same ones in every
            image; the function divides by `call.share`.
        whole_maps: Keep whole maps until the batch is complete.
        expensive: Measure it only for metrics that are asked for by name.
        asked_by: Passes that bring it without its being named.

    Raises:
        SelectorError: The name is taken or no name; unknown `requires`, `of` or `where`; options
            that contradict each other.
    """
    needs = checked_needs(requires, "requires")
    if not name.isidentifier():
        raise SelectorError(
            f"statistic name {name!r} must be made of letters, digits and underscores"
        )
    if name in STATISTICS or name in PASSES:
        raise SelectorError(f"statistic {name!r} is taken; choose another name")
    for what, value, known in (("of", of, get_args(Moment)), ("where", where, get_args(Where))):
        if value not in known:
            raise SelectorError(f"unknown {what}={value!r}; known: {', '.join(known)}")
    if by_consumer and (by_input or of == "batch" or where != "consumers"):
        raise SelectorError(
            f"statistic {name!r} is by_consumer, so it is of calls or gradients of consumers, and "
            "not by_input; leave the other options out"
        )
    if sampled and of == "batch":
        raise SelectorError(
            f"statistic {name!r} is of batches, whose positions are summed already; leave sampled "
            "out"
        )
    if of == "gradient":
        needs |= {"backward"}

    def register(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        STATISTICS[name] = Statistic(
            name,
            compute,
            of,
            needs,
            where,
            by_input=by_input,
            by_consumer=by_consumer,
            sampled=sampled,
            whole_maps=whole_maps,
            expensive=expensive,
            asked_by=frozenset(asked_by),
        )
        return compute

    return register


def checked_needs(needs: Need | Iterable[Need], what: str = "needs") -> frozenset[Need]:
    """Needs as a set, each a pass or a statistic.

    Raises:
        SelectorError: An unknown one; the known ones are listed.
    """
    given: object = needs
    if not isinstance(given, str | Iterable):
        raise SelectorError(f"{what}={needs!r} must be a name or several; {_known('')}")
    found = frozenset({needs} if isinstance(needs, str) else needs)
    for need in found:
        if need not in PASSES and need not in STATISTICS:
            raise SelectorError(f"unknown {what}={need!r}; {_known(need)}")
    return found


def _known(name: object) -> str:
    return nearest(name, [*PASSES, *STATISTICS])


def closure(needs: Iterable[Need]) -> frozenset[Need]:
    """The needs, and all that these need in turn."""
    found: set[Need] = set()
    waiting = list(needs)
    while waiting:
        need = waiting.pop()
        if need not in found:
            found.add(need)
            waiting += STATISTICS[need].requires if need in STATISTICS else PASSES[need]
    return frozenset(found)


def statistics_for(needs: Iterable[Need]) -> tuple[Statistic, ...]:
    """The statistics that a pass with these needs makes."""
    wanted = closure(needs)
    return tuple(s for s in STATISTICS.values() if s.name in wanted or s.asked_by & wanted)


def is_first_order(needs: Iterable[Need]) -> bool:
    """Whether one plain forward and backward pass, with cheap statistics, meets these needs."""
    return all(
        need in FIRST_ORDER or (need in STATISTICS and not STATISTICS[need].expensive)
        for need in closure(needs)
    )


def first_order_needs() -> frozenset[Need]:
    """All that one plain forward and backward pass can measure, cheap statistics included."""
    return FIRST_ORDER | {name for name in STATISTICS if is_first_order({name})}
