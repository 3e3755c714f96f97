"""What can be pruned in a network, as a value: groups, reasons against others, costs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from selector.errors import SelectorError
from selector.network.costs import Costs, Measure, saved_per_channel
from selector.network.groups import Group
from selector.tables import count_text, data_frame, html_table, text_table

if TYPE_CHECKING:
    from pandas import DataFrame

SHARED: tuple[Measure, ...] = ("macs", "parameters")
COLUMNS = ("group", "channels", "layers", "MACs", "parameters")


@dataclass(frozen=True, repr=False)
class Groups:
    """What can be pruned in a network, and what cannot, with the reason."""

    prunable: Mapping[str, Group]
    refused: Mapping[str, str]
    """Root layer -> why its channels are not pruned."""
    costs: Costs

    def __repr__(self) -> str:
        """How many there are."""
        return f"Groups({len(self.prunable)} prunable, {len(self.refused)} not)"

    def __str__(self) -> str:
        """A table of the groups, what the network costs, and what is not pruned."""
        costs = self.costs
        return "\n".join(
            [
                text_table(COLUMNS, self._cells()),
                "MACs, parameters: share of the network's that goes with all of a group's channels,"
                "\n  in the layers that make them and in those that read them",
                f"{count_text(costs.total('macs'))} MACs an image, "
                f"{count_text(costs.total('parameters'))} parameters",
                *(f"not pruned: {', '.join(names)}: {why}" for why, names in self._reasons()),
            ]
        )

    def _reasons(self) -> list[tuple[str, list[str]]]:
        """Reasons against pruning, each with the layers that it holds for."""
        found: dict[str, list[str]] = {}
        for name, why in self.refused.items():
            found.setdefault(why, []).append(name)
        return list(found.items())

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return html_table(COLUMNS, self._cells(), title=repr(self))

    def rows(self) -> list[dict[str, object]]:
        """The groups, a dictionary each: channels, layers, and their shares of the costs."""
        costs = self.costs
        return [
            {
                "group": group.name,
                "channels": group.channels,
                "layers": list(dict.fromkeys(part.layer for part in group.slices)),
                **{
                    f"{measure}_share": 1
                    - costs.total(measure, {group: group.channels}) / costs.total(measure)
                    for measure in SHARED
                },
                "macs_per_channel": group.macs_per_channel,
                "parameters_per_channel": group.parameters_per_channel,
            }
            for group in self.prunable.values()
        ]

    def to_pandas(self) -> "DataFrame":
        """The groups as a pandas table; see `rows`."""
        return data_frame(self.rows())

    def _cells(self) -> list[list[str]]:
        return [
            [
                str(row["group"]),
                f"{row['channels']}",
                f"{len(self._layers(str(row['group'])))}",
                f"{row['macs_share']:.1%}",
                f"{row['parameters_share']:.1%}",
            ]
            for row in self.rows()
        ]

    def _layers(self, name: str) -> set[str]:
        return {part.layer for part in self.prunable[name].slices}

    def with_costs(self, costs: Costs) -> "Groups":
        """The same groups where the network costs something else: for larger images, say."""
        prunable = {
            name: replace(
                group,
                macs_per_channel=saved_per_channel(costs, group, "macs"),
                parameters_per_channel=saved_per_channel(costs, group, "parameters"),
            )
            for name, group in self.prunable.items()
        }
        return Groups(prunable, self.refused, costs)

    def required(self) -> Mapping[str, Group]:
        """The prunable groups, at least one.

        Raises:
            SelectorError: There is none; the first reasons are given.
        """
        if not self.prunable:
            reasons = "; ".join(f"{name}: {why}" for name, why in list(self.refused.items())[:3])
            raise SelectorError(
                "the network has no prunable group of channels"
                + (f" ({reasons})" if reasons else " (no convolution or linear layer was traced)")
            )
        return self.prunable
