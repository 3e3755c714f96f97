"""What records know of a group's sets of channels: the proposals of sets, and their errors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from selector.records.decision import SET_ERRORS
from selector.records.measurement import CandidateRecord
from selector.typing import Channels, Matrix

_UNKNOWN = (float("nan"),) * len(SET_ERRORS)


@dataclass(frozen=True, eq=False)
class RecordedSets:
    """The sets of one group in one state, as they were recorded."""

    sets: Mapping[int, Mapping[str, Channels]]
    """Channels that go -> arm -> those of its set."""
    known: Mapping[tuple[int, str], tuple[float, ...]]
    """Channels that go and arm -> the errors of its candidate."""

    @classmethod
    def of(cls, rows: Iterable[CandidateRecord]) -> "RecordedSets":
        """From the candidates of a group."""
        sets: dict[int, dict[str, Channels]] = {}
        known = {}
        for row in rows:
            if row.channels is not None:
                sets.setdefault(row.count, {})[row.arm] = row.channels
            errors = row.residual, row.fisher_residual, row.softened_second
            known[row.count, row.arm] = tuple(np.nan if e is None else e for e in errors)
        return cls(sets, known)

    def proposed(self, count: int) -> Mapping[str, Channels]:
        """Arms that propose sets -> the channels that they would remove."""
        return self.sets.get(count, {})

    def errors(self, proposals: Mapping[str, Channels]) -> Matrix:
        """The `SET_ERRORS` of some proposals; see `SetKnowledge`."""
        rows = [self.known.get((len(s), arm), _UNKNOWN) for arm, s in proposals.items()]
        return np.array(rows).reshape(len(rows), len(SET_ERRORS))
