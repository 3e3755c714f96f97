"""Where a network stands on its way to the target, and how far this round goes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from selector.errors import SelectorError
from selector.network.costs import Costs, Measure
from selector.network.latency import Clock
from selector.network.tracing import Groups
from selector.planning.limits import Widths
from selector.planning.target import Target


@dataclass(frozen=True)
class Stage:
    """A network on its way to the target: where it stands, and how far this round goes."""

    groups: Groups
    """The network's groups as they are now."""
    widths: Widths
    target: Target
    share: float
    """The part of the way that is done after this round, in (0, 1]."""
    start: Costs
    """Costs of the unpruned network."""
    clock: Clock | None = None
    """What tells the cost where the target is a share of the latency."""

    @property
    def macs_kept(self) -> float:
        """Share of the unpruned network's multiply-accumulates that is left now."""
        return self.groups.costs.total("macs") / self.start.total("macs")

    @property
    def measure(self) -> Measure:
        """What the target counts; neither a ratio of channels nor seconds are counted."""
        assert self.target.measure not in ("channels", "latency")
        return cast(Measure, self.target.measure)

    @property
    def start_cost(self) -> float:
        """The cost of the unpruned network."""
        return self.start.total(self.measure) if self.clock is None else self.clock.cost({})

    @property
    def limit(self) -> float:
        """The cost that may be left after this round."""
        return float(self.target.keep**self.share * self.start_cost)

    @property
    def pinned(self) -> dict[str, int]:
        """Groups that were given a ratio of their own, with the channels that they lose now."""
        return {
            name: self.widths.nearest_to(self.groups.prunable[name], self.due(ratio))
            for name, ratio in self.widths.ratios.items()
            if name in self.groups.prunable
        }

    @property
    def free(self) -> list[str]:
        """The groups that the target decides on."""
        return [name for name in self.groups.prunable if name not in self.widths.ratios]

    def due(self, ratio: float) -> float:
        """The part of a ratio of channels that is due after this round."""
        return float(1 - (1 - ratio) ** self.share)

    def options(self, name: str) -> list[int]:
        """How many channels may still go from a group, ascending, beginning with none."""
        return self.widths.options(self.groups.prunable[name])

    def cost(self, counts: Mapping[str, int]) -> float:
        """The network's cost after these numbers of channels are removed from the groups."""
        if self.clock is not None:
            return self.clock.cost(self.lost(counts))
        removed = {self.groups.prunable[name]: count for name, count in counts.items()}
        return self.groups.costs.total(self.measure, removed)

    def lost(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Share of each group's original channels that is gone after these are removed, too."""
        groups, original = self.groups.prunable, self.widths.original
        # A group that is not there any more has one channel left.
        return {
            name: self.widths.lost(groups[name], counts.get(name, 0))
            if name in groups
            else 1 - 1 / original[name]
            for name in original
        }

    def check_reachable(self) -> None:
        """Make sure that the target can be met.

        Raises:
            SelectorError: It cannot; the smallest reachable value is named.
        """
        most = {name: self.options(name)[-1] for name in self.free}
        last = replace(self, share=1.0)
        least = self.cost({**most, **last.pinned}) / self.start_cost
        if least > self.target.keep:
            refused = len(self.groups.refused)
            raise SelectorError(
                f"keeping {self.target.keep:.1%} of the {self.target.measure} cannot be met: the "
                f"prunable groups allow {least:.1%} at the least; raise max_ratio, lower round_to "
                "or min_channels, or ignore fewer groups"
                + (f" ({refused} groups are not pruned)" if refused else "")
            )


def even_ratio(stage: Stage) -> dict[str, int]:
    """Channels that every group loses so that its width is the allowed one nearest to the ratio.

    Raises:
        SelectorError: The ratio is more than a group may lose, or removes nothing.
    """
    widths, groups = stage.widths, stage.groups.prunable
    asked = 1 - stage.target.keep
    if asked > widths.max_ratio:
        raise SelectorError(
            f"ratio={asked:.4g} is more than max_ratio={widths.max_ratio:.4g} lets any group lose; "
            "raise max_ratio, or lower ratio"
        )
    even = {name: widths.nearest_to(groups[name], stage.due(asked)) for name in stage.free}
    counts = {name: {**even, **stage.pinned}[name] for name in groups}
    lost = [widths.lost(groups[name], count) for name, count in counts.items()]
    if stage.share == 1 and not any(lost):
        widest = max(widths.original.values())
        what = f"ratio={asked:.4g}" if asked else f"ratios={dict(widths.ratios)}"
        raise SelectorError(
            f"{what} removes nothing: no group, of {widest} channels at most, has an "
            f"allowed width (round_to={widths.round_to}, min_channels={widths.min_channels}) "
            "nearer to it than its own; raise the ratio"
        )
    return counts


def asked_widths(stage: Stage) -> dict[str, float]:
    """Channels that were to be left of every group of which a ratio was asked, unrounded."""
    asked = dict(stage.widths.ratios)
    if stage.target.measure == "channels" and stage.target.keep < 1:
        asked = dict.fromkeys(stage.widths.original, 1 - stage.target.keep) | asked
    return {
        name: stage.widths.original[name] * (1 - stage.due(ratio)) for name, ratio in asked.items()
    }
