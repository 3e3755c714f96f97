"""Which widths a group may have: floors, multiples, and what was asked of it by name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from selector.data.checks import check_mapping, check_names, share, whole_number
from selector.errors import SelectorError, nearest
from selector.network.groups import Group
from selector.network.tracing import Groups

Shares = Mapping[str, float]
"""Group -> a share of its channels."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a caller allows: which groups are pruned, how far, and to which widths.

    Raises:
        SelectorError: A number out of range; the option is named.
    """

    ignore: tuple[str, ...] = ()
    """Groups that are not pruned, by name; a producer's name stands for its whole group."""
    max_ratio: float = 0.9
    """Largest share of a group's channels that may go, in (0, 1)."""
    max_ratios: Shares = field(default_factory=dict)
    """The same for single groups, by name."""
    ratios: Shares = field(default_factory=dict)
    """Shares of the channels that single groups lose, by name."""
    round_to: int = 1
    """Widths that are left are multiples of this."""
    min_channels: int = 1
    """Channels of a layer that are left at least."""

    @classmethod
    def of(
        cls,
        *,
        ignore: Iterable[str],
        max_ratio: float,
        max_ratios: Shares | None,
        ratios: Shares | None,
        round_to: int,
        min_channels: int,
    ) -> "Limits":
        """The options of `choose` and `prune` as one value.

        Raises:
            SelectorError: A number out of range, or one name instead of a list of names.
        """
        check_mapping("max_ratios", max_ratios)
        check_mapping("ratios", ratios)
        return cls(
            ignore=check_names("ignore", ignore),
            max_ratio=share("max_ratio", max_ratio),
            max_ratios=max_ratios or {},
            ratios=ratios or {},
            round_to=whole_number("round_to", round_to, 1),
            min_channels=whole_number("min_channels", min_channels, 1),
        )

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        share("max_ratio", self.max_ratio)
        whole_number("round_to", self.round_to, 1)
        whole_number("min_channels", self.min_channels, 1)

    def groups(self, found: Groups) -> Groups:
        """The groups of a network without those to ignore.

        Raises:
            SelectorError: A name in `ignore` that is no layer of any group.
        """
        return without(found, self.ignore)

    def widths(self, groups: Groups) -> "Widths":
        """The widths that these groups may have.

        Raises:
            SelectorError: A name that is no group, or a ratio beyond its group's limit.
        """
        return Widths.of(
            groups.required(),
            self.max_ratio,
            self.round_to,
            min_channels=self.min_channels,
            max_ratios=by_group(groups, self.max_ratios, "max_ratios"),
            ratios=by_group(groups, self.ratios, "ratios"),
        )


@dataclass(frozen=True)
class Widths:
    """Widths of the groups before anything was removed, and how far they may shrink."""

    original: Mapping[str, int]
    """Group name -> number of removable channels."""
    max_ratio: float
    """Largest share of a group's channels that may go, where `max_ratios` says nothing else."""
    round_to: int
    """The root's outputs that are left must be a multiple of this."""
    min_channels: int = 1
    """Least number of the root's outputs that are left."""
    max_ratios: Shares = field(default_factory=dict)
    ratios: Shares = field(default_factory=dict)
    """Groups that lose this share of their channels, whatever the others lose."""

    @classmethod
    def of(
        cls,
        groups: Mapping[str, Group],
        max_ratio: float,
        round_to: int,
        *,
        min_channels: int = 1,
        max_ratios: Shares | None = None,
        ratios: Shares | None = None,
    ) -> "Widths":
        """Read the widths of an unpruned network's groups.

        Raises:
            SelectorError: A limit out of range, or a ratio beyond its group's limit.
        """
        Limits(max_ratio=max_ratio, round_to=round_to, min_channels=min_channels)
        widths = {name: group.channels for name, group in groups.items()}
        found = cls(widths, max_ratio, round_to, min_channels, max_ratios or {}, ratios or {})
        for name, ratio in found.ratios.items():
            if ratio > found.limit(name):
                raise SelectorError(
                    f"ratios asks that {name!r} lose {ratio:.4g} of its channels, and "
                    f"max_ratio={found.limit(name):.4g} lets it lose no more than that; lower the "
                    f"one, or raise the other (for this group alone: max_ratios={{{name!r}: ...}})"
                )
        return found

    def limit(self, name: str) -> float:
        """Largest share of a group's channels that may go."""
        return self.max_ratios.get(name, self.max_ratio)

    def options(self, group: Group) -> list[int]:
        """How many channels may still go from the group, ascending, beginning with none."""
        # A hair more, for rounding: .57 of 100 channels are 57.
        most = int(self.limit(group.name) * self.original[group.name] + 1e-9)
        # One channel at least: where convolutions are grouped, one filter in every group of them.
        least = max(1, self.original[group.name] - most)
        return [0] + [
            group.channels - width
            for width in range(group.channels - 1, least - 1, -1)
            if width * group.span % self.round_to == 0 and width * group.span >= self.min_channels
        ]

    def lost(self, group: Group, count: int) -> float:
        """Share of the original channels that is gone after another `count`."""
        return 1 - (group.channels - count) / self.original[group.name]

    def nearest_to(self, group: Group, ratio: float) -> int:
        """Channels to remove so that the share lost comes as near to a ratio as is allowed."""
        return min(self.options(group), key=lambda n: abs(ratio - self.lost(group, n)))


def by_group(groups: Groups, shares: Shares | None, option: str) -> dict[str, float]:
    """Shares by the name of the group; a producer's name stands for its whole group.

    Args:
        groups: The network's groups.
        shares: As the caller gave them.
        option: The argument's name, for messages.

    Raises:
        SelectorError: No group of that name, or one that is not pruned; a share outside (0, 1);
            two shares for one group.
    """
    found: dict[str, float] = {}
    for name, given in (shares or {}).items():
        value = share(f"{option}[{name!r}]", given)
        group = group_of(groups, name, option)
        if found.setdefault(group, value) != value:
            raise SelectorError(
                f"{option} gives group {group!r} both {found[group]} and {value}, since "
                f"{name!r} belongs to it; give one"
            )
    return found


def group_of(groups: Groups, name: str, option: str) -> str:
    """The prunable group of that name, or with a producer of that name.

    Raises:
        SelectorError: No group has that name; the nearest names are offered.
    """
    for group in groups.prunable.values():
        if name == group.name or name in group.producers:
            return group.name
    if name in groups.refused:
        raise SelectorError(
            f"{option} names {name!r}, which is not pruned: {groups.refused[name]}; leave it out"
        )
    raise SelectorError(
        f"{option} names {name!r}, which is no group; {nearest(name, groups.prunable)}"
    )


def without(groups: Groups, ignore: Iterable[str]) -> Groups:
    """The groups less those that hold one of these layers.

    Raises:
        SelectorError: A name that is no layer of any group; the nearest are offered.
    """
    named = [
        name if name in groups.refused else group_of(groups, name, "ignore") for name in ignore
    ]
    gone = [name for name in named if name in groups.prunable]
    prunable = {name: group for name, group in groups.prunable.items() if name not in gone}
    refused = {**groups.refused, **dict.fromkeys(gone, "ignored, as asked")}
    return replace(groups, prunable=MappingProxyType(prunable), refused=MappingProxyType(refused))
