"""A group as the selector sees it, and a decision: that group and how many channels to remove.

Facts describe the group, the context describes the network's state, scores and pairs say what the
metrics see; `learning/features.py` turns them into the numbers that the selector learns from.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from selector.statistics.gate_fisher import Pairs
from selector.typing import Channels, Matrix


@dataclass(frozen=True)
class GroupFacts:
    """A group, whatever the metrics say of it."""

    relative_depth: float
    """Place of the root among the network's counted layers, 0 to 1."""
    log_channels: float
    """log2 of the number of removable channels."""
    relative_width: float
    """The root's outputs over those of the network's widest layer."""
    log_fan_in: float
    """log2 of the root's weights that go with one removable channel."""
    kernel: float
    """Root's kernel size, 1 for a linear layer."""
    log_positions: float
    """log2 of the positions of a channel's map at the consumers, summed over them."""
    producers: float
    consumers: float
    depthwise: float
    """Whether a depthwise convolution stands between."""
    normalised: float
    """Whether a BatchNorm stands between."""
    linear_producer: float
    linear_consumer: float
    macs_share: float
    """Share of the network's multiply-accumulates that goes when all channels go."""
    parameters_share: float
    norm_spread: float
    """Standard deviation of the filters' norms over their mean."""
    norm_skew: float
    norm_kurtosis: float
    stable_rank: float
    """Stable rank of the weight matrix over its smaller dimension, 0 to 1."""
    mean_cosine: float
    """Mean cosine between two different filters."""


@dataclass(frozen=True)
class Context:
    """The state of the network in which a decision is taken."""

    macs_kept: float
    """Share of the unpruned network's multiply-accumulates that is left, 0 to 1."""
    base_loss: float
    """Loss before the removal, in nats."""
    relative_loss: float
    """The same over that of guessing, log of the number of classes."""
    log_outputs: float
    """log2 of the number of classes."""
    log_images: float
    """log2 of the number of images behind the signals."""


SET_ERRORS = ("residual", "fisher_residual", "softened_second")
"""What is known of every candidate's set by views that read no labels: the share of the consumers'
variance that is lost once the rest is refitted, the same in nats by the softened outputs'
gradients, and the joint effect on the softened outputs without a refit, in nats."""


class SetKnowledge(Protocol):
    """What is known of a group's sets of channels: measured now, or read from records."""

    def proposed(self, count: int) -> Mapping[str, Channels]:
        """Arms that propose sets -> the `count` channels that they would remove."""

    def errors(self, proposals: Mapping[str, Channels]) -> Matrix:
        """The `SET_ERRORS` of some proposals, shape (proposals, errors); NaN where unknown."""


@dataclass(frozen=True, eq=False)
class GroupView:
    """All that the selector may know of a group in one state of its network."""

    facts: GroupFacts
    context: Context
    scores: Mapping[str, Matrix]
    """Metric -> scores of shape (channels,)."""
    pairs: Mapping[str, Pairs] = field(default_factory=dict)
    """Mode of removal -> what every two channels do together; empty in old records."""
    sets: SetKnowledge | None = None
    """What is known of its sets; None where no arm proposes sets, and in old records."""
    derived: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)
    """What `learning/features.py` has computed from the scores, so that it is computed once."""

    @property
    def channels(self) -> int:
        """Removable channels of the group in this state."""
        return len(next(iter(self.scores.values())))


@dataclass(frozen=True, eq=False)
class Decision:
    """What the selector is asked: which arm's `count` lowest channels should go?"""

    view: GroupView
    count: int

    @property
    def facts(self) -> GroupFacts:
        """The group's facts."""
        return self.view.facts

    @property
    def context(self) -> Context:
        """The state of the network."""
        return self.view.context

    @property
    def scores(self) -> Mapping[str, Matrix]:
        """Metric -> scores of shape (channels,)."""
        return self.view.scores

    @property
    def pairs(self) -> Mapping[str, Pairs]:
        """Mode of removal -> what every two channels do together."""
        return self.view.pairs


FACTS = tuple(field.name for field in fields(GroupFacts))
CONTEXT = tuple(field.name for field in fields(Context))
