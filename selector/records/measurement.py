"""What was measured, row by row: groups as the selector sees them, and candidates with losses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from selector.records.decision import Context, GroupFacts, GroupView, SetKnowledge
from selector.statistics.gate_fisher import Pairs
from selector.typing import Matrix


@dataclass(frozen=True, eq=False)
class GroupRecord:
    """One group of a network in one state: what the selector may know of it."""

    network: str
    context: str
    """Name of the network's state: `unpruned`, or metric and share of the MACs that it has left."""
    group: str
    channels: int
    """Channels that the group has in this state."""
    facts: GroupFacts
    state: Context
    scores: Mapping[str, Matrix]
    """Metric -> raw scores of shape (channels,)."""
    pairs: Mapping[str, Pairs] = field(default_factory=dict)
    """Mode of removal -> what every two channels do together."""

    def view(self, sets: SetKnowledge | None = None) -> GroupView:
        """The group as the selector sees it; what is derived of it lives as long as the view.

        Args:
            sets: What is known of its sets of channels.
        """
        return GroupView(self.facts, self.state, self.scores, self.pairs, sets)


@dataclass(frozen=True)
class CandidateRecord:
    """One arm's choice in one decision, and what it truly did to the loss."""

    network: str
    context: str
    group: str
    count: int
    """Channels removed."""
    arm: str
    set_id: int
    """Equal for arms that chose the same channels in this decision: measured once."""
    selection_nats: float
    """Loss change on the selection split, in the mode that the network was recorded in."""
    selection_error: float
    """Its standard error, paired by image."""
    evaluation_nats: float
    """Loss change on the evaluation split, disjoint from the other."""
    evaluation_error: float
    compensated_selection_nats: float | None = None
    """As above, with the removed channels' means in their place; None where not measured."""
    compensated_selection_error: float | None = None
    compensated_evaluation_nats: float | None = None
    compensated_evaluation_error: float | None = None
    recalibrated_nats: float | None = None
    """On the evaluation split, after BatchNorm was recalibrated; None but for a sample."""
    recalibrated_error: float | None = None
    selection_divergence: float | None = None
    """How much further the outputs are from the unpruned network's softened outputs, on the
    selection split; None where not measured."""
    selection_divergence_error: float | None = None
    evaluation_divergence: float | None = None
    evaluation_divergence_error: float | None = None
    channels: tuple[int, ...] | None = None
    """What goes, where the arm proposes sets; None for a metric, whose scores tell it."""
    residual: float | None = None
    """See `SET_ERRORS`; None where not measured."""
    fisher_residual: float | None = None
    softened_second: float | None = None

    @property
    def label(self) -> tuple[float, float]:
        """What is learnt, on the selection split and on the evaluation split.

        The divergence where it was measured, since it does not vanish on memorised images; else the
        loss change.
        """
        if self.selection_divergence is None or self.evaluation_divergence is None:
            return self.selection_nats, self.evaluation_nats
        return self.selection_divergence, self.evaluation_divergence

    @property
    def label_error(self) -> float:
        """Standard error of the mean of both labels."""
        errors = self.selection_error, self.evaluation_error
        if self.selection_divergence is not None:
            errors = self.selection_divergence_error or 0.0, self.evaluation_divergence_error or 0.0
        return math.hypot(*errors) / 2

    @property
    def nats(self) -> float:
        """Mean of the two splits, in the mode that the network was recorded in."""
        return (self.selection_nats + self.evaluation_nats) / 2
