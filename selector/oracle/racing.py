"""Candidates under measurement: losses so far, and which of them cannot win any more."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from selector.network.groups import Group
from selector.typing import Channels

LEAST_IMAGES = 32
"""Before this many images a standard error says too little to stop anything by."""


class Race:
    """Loss differences of candidates, unit by unit; rivals are equally large sets of a group."""

    def __init__(
        self, candidates: Mapping[Group, Sequence[Channels]], stop: float | None = None
    ) -> None:
        """Begin with all of them.

        Args:
            candidates: Group -> distinct channel sets.
            stop: Standard errors by which a candidate must trail the best of its rivals to be given
                up; None gives up none.
        """
        self._stop = stop
        self._found: dict[tuple[Group, Channels], list[Tensor]] = {
            (group, channels): [] for group, sets in candidates.items() for channels in sets
        }
        self._left = dict.fromkeys(self._found)

    def start_over(self) -> None:
        """Forget what was measured; all candidates are in the race again."""
        self._found = {candidate: [] for candidate in self._found}
        self._left = dict.fromkeys(self._found)

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self._found)

    def left(self) -> dict[Group, list[Channels]]:
        """Those that are still measured."""
        found: dict[Group, list[Channels]] = {}
        for group, channels in self._left:
            found.setdefault(group, []).append(channels)
        return found

    def add(self, group: Group, channels: Channels, differences: Tensor) -> None:
        """Loss after removal minus before, of some more units, shape (units,)."""
        self._found[group, channels].append(differences)

    def differences(self, group: Group, channels: Channels) -> Tensor:
        """All that was found of a candidate, shape (units,), float64; nothing of the empty set."""
        parts = self._found.get((group, channels))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def finish_batch(self) -> None:
        """Give up candidates that trail the best of their rivals by more than chance allows."""
        if self._stop is None:
            return
        races: dict[tuple[Group, int], list[Channels]] = {}
        for group, channels in self._left:
            races.setdefault((group, len(channels)), []).append(channels)
        for (group, _), sets in races.items():
            table = torch.stack([self.differences(group, channels) for channels in sets])
            images = table.shape[1]
            if len(sets) < 2 or images < LEAST_IMAGES:
                continue
            behind = table - table[table.mean(1).argmin()]
            error = behind.std(1) / images**0.5
            for channels, lost in zip(sets, behind.mean(1) > self._stop * error, strict=True):
                if bool(lost):
                    del self._left[group, channels]
