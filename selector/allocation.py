"""How many channels go from every group, so that a target is met: the budget and its limits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict, cast

from selector.costs import Costs, Measure
from selector.errors import SelectorError
from selector.groups import Group
from selector.tracing import Groups


class Targets(TypedDict, total=False):
    """The targets that `choose` and `prune` know; exactly one is given."""

    keep_macs: float
    """Share of the multiply-accumulates that stays."""
    keep_params: float
    """Share of the parameters that stays."""
    keep_weights: float
    """Share of the convolutions' weights that stays."""
    ratio: float
    """Share of every group's channels that goes."""


MEASURES: dict[str, Measure] = {
    "keep_macs": "macs",
    "keep_params": "parameters",
    "keep_weights": "weights",
}


@dataclass(frozen=True)
class Target:
    """What is left when pruning is done."""

    measure: Measure | Literal["channels"]
    keep: float
    """Share of the measure that stays, between 0 and 1."""

    @classmethod
    def of(cls, targets: Targets) -> "Target":
        """The one target that was named.

        Raises:
            SelectorError: None, several, an unknown one, or one outside (0, 1).
        """
        known = [*MEASURES, "ratio"]
        given = cast(dict[str, float], targets)
        unknown = [name for name in given if name not in known]
        if unknown:
            raise SelectorError(f"unknown target {unknown[0]!r}; known: {', '.join(known)}")
        if len(given) != 1:
            named = " and ".join(given) or "none"
            raise SelectorError(f"give exactly one target of {', '.join(known)}; got {named}")
        ((name, value),) = given.items()
        if not isinstance(value, int | float) or not 0 < value < 1:
            what = "removed" if name == "ratio" else "kept"
            raise SelectorError(f"{name}={value!r} must be a share {what}, between 0 and 1")
        return cls("channels", 1 - value) if name == "ratio" else cls(MEASURES[name], value)


@dataclass(frozen=True)
class Widths:
    """Widths of the groups before anything was removed, and how far they may shrink."""

    original: Mapping[str, int]
    max_ratio: float
    round_to: int

    @classmethod
    def of(cls, groups: Mapping[str, Group], max_ratio: float, round_to: int) -> "Widths":
        """Read the widths of an unpruned network's groups.

        Raises:
            SelectorError: A limit out of range.
        """
        if not 0 < max_ratio < 1:
            raise SelectorError(f"max_ratio={max_ratio!r} must be a share between 0 and 1")
        if not isinstance(round_to, int) or round_to < 1:
            raise SelectorError(f"round_to={round_to!r} must be a whole number, 1 or more")
        widths = {name: group.channels for name, group in groups.items()}
        return cls(widths, max_ratio, round_to)

    def options(self, group: Group) -> list[int]:
        """How many channels may still go from the group, ascending, beginning with none."""
        least = max(1, self.original[group.name] - int(self.max_ratio * self.original[group.name]))
        return [0] + [
            group.channels - width
            for width in range(group.channels - 1, least - 1, -1)
            if width % self.round_to == 0
        ]

    def lost(self, group: Group, count: int) -> float:
        """Share of the original channels that is gone after another `count`."""
        return 1 - (group.channels - count) / self.original[group.name]


def allocate(
    groups: Groups, widths: Widths, target: Target, *, share: float, start: Costs
) -> dict[str, int]:
    """Channels that every group loses now; the same share of each group's original width.

    Single steps are taken in the order of the share lost after half of them, so that groups shrink
    evenly; the last step is the one that comes closest to the target from below.

    Args:
        groups: The network's groups as they are now.
        widths: Their original widths and limits.
        target: What is left when all the rounds are done.
        share: The part of the way that is done after this round, in (0, 1].
        start: Costs of the unpruned network.

    Raises:
        SelectorError: The target cannot be met; the smallest reachable value is named.
    """
    keep = target.keep**share
    if target.measure == "channels":
        return _even_ratio(groups, widths, 1 - keep, 1 - target.keep, last=share == 1)
    measure, limit = target.measure, keep * start.total(target.measure)
    options = {name: widths.options(group) for name, group in groups.prunable.items()}
    _check_reachable(groups, options, measure, target, start)
    counts = dict.fromkeys(options, 0)
    remaining = {name: steps[1:] for name, steps in options.items() if len(steps) > 1}

    def cost(changed: Mapping[str, int]) -> float:
        return groups.costs.total(measure, {groups.prunable[n]: c for n, c in changed.items()})

    while remaining and cost(counts) > limit:
        ends = {name: cost({**counts, name: steps[0]}) for name, steps in remaining.items()}
        enough = [name for name, value in ends.items() if value <= limit]
        if enough:
            chosen = max(enough, key=ends.__getitem__)
        else:
            chosen = min(remaining, key=lambda name: _turn(groups, widths, counts, remaining, name))
        counts[chosen] = remaining[chosen].pop(0)
        if not remaining[chosen]:
            del remaining[chosen]
    return counts


def _even_ratio(
    groups: Groups, widths: Widths, ratio: float, asked: float, *, last: bool
) -> dict[str, int]:
    """The allowed width of every group that is nearest to having lost a share of its channels."""
    if asked > widths.max_ratio:
        raise SelectorError(
            f"ratio={asked:.4g} is more than max_ratio={widths.max_ratio:.4g} lets any group lose; "
            "raise max_ratio, or lower ratio"
        )
    counts = {
        name: min(widths.options(group), key=lambda n: abs(ratio - widths.lost(group, n)))
        for name, group in groups.prunable.items()
    }
    lost = [widths.lost(groups.prunable[name], count) for name, count in counts.items()]
    if last and not any(lost):
        widest = max(widths.original.values())
        raise SelectorError(
            f"ratio={asked:.4g} removes nothing: no group, of {widest} channels at most, has an "
            f"allowed width (round_to={widths.round_to}) nearer to it than its own; raise ratio"
        )
    return counts


def _turn(
    groups: Groups,
    widths: Widths,
    counts: Mapping[str, int],
    remaining: Mapping[str, list[int]],
    name: str,
) -> float:
    middle = (counts[name] + remaining[name][0]) / 2
    group = groups.prunable[name]
    return 1 - (group.channels - middle) / widths.original[name]


def _check_reachable(
    groups: Groups, options: Mapping[str, list[int]], measure: Measure, target: Target, start: Costs
) -> None:
    most = {groups.prunable[name]: steps[-1] for name, steps in options.items()}
    least = groups.costs.total(measure, most) / start.total(measure)
    if least > target.keep:
        raise SelectorError(
            f"keeping {target.keep:.1%} of the {measure} cannot be met: the prunable groups allow "
            f"{least:.1%} at the least; raise max_ratio, lower round_to, or ignore fewer groups"
            + (f" ({len(groups.refused)} groups are left alone)" if groups.refused else "")
        )
