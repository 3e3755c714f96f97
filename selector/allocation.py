"""How many channels go from every group, so that a target is met: the budget and its limits."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, TypedDict, cast

from selector.costs import Costs, Measure
from selector.errors import SelectorError, nearest
from selector.latency import Clock
from selector.tracing import Groups
from selector.widths import Shares, Widths


class Targets(TypedDict, total=False):
    """The targets that `choose` and `prune` know; exactly one is given, or `ratios` alone."""

    keep_macs: float
    """Share of the multiply-accumulates that stays."""
    keep_params: float
    """Share of the parameters that stays."""
    keep_weights: float
    """Share of the convolutions' weights that stays."""
    keep_latency: float
    """Share of the time of a forward pass that stays, as measured on this machine."""
    ratio: float
    """Share of every group's channels that goes."""


MEASURES: dict[str, Measure | Literal["latency"]] = {
    "keep_macs": "macs",
    "keep_params": "parameters",
    "keep_weights": "weights",
    "keep_latency": "latency",
}


@dataclass(frozen=True)
class Target:
    """What is left when pruning is done."""

    measure: Measure | Literal["channels", "latency"]
    keep: float
    """Share of the measure that stays, between 0 and 1; one where `ratios` stands alone."""

    @classmethod
    def of(cls, targets: Targets, ratios: Shares | None = None) -> "Target":
        """The one target that was named.

        Args:
            targets: What the caller named.
            ratios: Shares asked of single groups; where they stand alone, nothing else goes.

        Raises:
            SelectorError: None, several, an unknown one, or one outside (0, 1).
        """
        known = [*MEASURES, "ratio"]
        given = cast(dict[str, float], targets)
        unknown = [name for name in given if name not in known]
        if unknown:
            raise SelectorError(f"unknown target {unknown[0]!r}; {nearest(unknown[0], known)}")
        if not given and ratios:
            return cls("channels", 1.0)
        if len(given) != 1:
            named = " and ".join(given) or "none"
            raise SelectorError(f"give exactly one target of {', '.join(known)}; got {named}")
        ((name, value),) = given.items()
        if not isinstance(value, int | float) or not 0 < value < 1:
            what = "removed" if name == "ratio" else "kept"
            raise SelectorError(f"{name}={value!r} must be a share {what}, between 0 and 1")
        return cls("channels", 1 - value) if name == "ratio" else cls(MEASURES[name], value)

    @property
    def name(self) -> str:
        """The argument that names it."""
        if self.measure == "channels":
            return "ratio" if self.keep < 1 else "ratios"
        return next(name for name, measure in MEASURES.items() if measure == self.measure)


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
        """The network's cost after so many channels of every group are gone."""
        if self.clock is not None:
            return self.clock.cost(self.lost(counts))
        removed = {self.groups.prunable[name]: count for name, count in counts.items()}
        return self.groups.costs.total(self.measure, removed)

    def lost(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Share of every group's original channels that is gone after so many more of them."""
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
                + (f" ({refused} groups are left alone)" if refused else "")
            )


def allocate_evenly(stage: Stage) -> dict[str, int]:
    """Channels that every group loses now; the same share of each group's original width.

    Single steps are taken in the order of the share lost after half of them, so that every group
    has the allowed width that is nearest to the common share; the last step is the one that comes
    closest to the target from below.

    Raises:
        SelectorError: The target cannot be met; the smallest reachable value is named.
    """
    if stage.target.measure == "channels":
        return _even_ratio(stage)
    stage.check_reachable()
    counts = {**dict.fromkeys(stage.groups.prunable, 0), **stage.pinned}
    remaining = {n: stage.options(n)[1:] for n in stage.free if len(stage.options(n)) > 1}
    # No step saves more than it would now, so that single steps need not be looked at before.
    largest = max((_most_saved(stage, n, steps) for n, steps in remaining.items()), default=0.0)
    limit = stage.limit
    while remaining and (cost := stage.cost(counts)) > limit:
        near = {} if cost - largest > limit else remaining
        ends = {n: stage.cost({**counts, n: steps[0]}) for n, steps in near.items()}
        enough = [name for name, value in ends.items() if value <= limit]
        if enough:
            chosen = max(enough, key=ends.__getitem__)
        else:
            turns = {n: _turn(stage, n, counts[n], steps[0]) for n, steps in remaining.items()}
            chosen = min(turns, key=turns.__getitem__)
        counts[chosen] = remaining[chosen].pop(0)
        if not remaining[chosen]:
            del remaining[chosen]
    return counts


def _most_saved(stage: Stage, name: str, steps: list[int]) -> float:
    widest = max(then - now for now, then in pairwise([0, *steps]))
    # A hair more, for rounding.
    return (stage.cost({}) - stage.cost({name: widest})) * (1 + 1e-9)


def _turn(stage: Stage, name: str, now: int, then: int) -> float:
    group = stage.groups.prunable[name]
    return 1 - (group.channels - (now + then) / 2) / stage.widths.original[name]


def _even_ratio(stage: Stage) -> dict[str, int]:
    """The allowed width of every group that is nearest to having lost a share of its channels."""
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
