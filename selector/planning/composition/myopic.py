"""Options of the myopic composition of arXiv 2004.03376: its metrics, and how many of what.

The numbers of the paper are the defaults of `Myopic`; its other fields are what we vary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from torch import Tensor

from selector.data.checks import whole_number
from selector.errors import SelectorError
from selector.saliency.registry import Metric, find_metric
from selector.statistics.channel_statistics import Signals
from selector.typing import Mode

Channel = tuple[str, int]
"""Group name and number of the channel."""

PAPER = "arXiv 2004.03376"


def mean_squared_weight(signals: Signals) -> Tensor:
    r"""Mean square of the weights of the channel's filters.

    .. math:: s_c = \frac{1}{K} \sum_k w_{ck}^2

    Source:
        Persand et al., arXiv 2004.03376.
    """
    return signals.weight_moments["value"].square / signals.rows.shape[1]


def half_squared_taylor(signals: Signals) -> Tensor:
    r"""Half the mean square of the channel's first-order effect, at the producers' outputs, nats^2.

    .. math:: s_c = \frac{1}{2N} \sum_n \Big( \sum_{h,w} a_{nchw}\, g_{nchw} \Big)^2

    Source:
        Theis et al., arXiv 1801.05787, as in Persand et al., arXiv 2004.03376.
    """
    return signals.at_producers["taylor"].square_of_sum / 2


FOUNDING_METRICS: tuple[Metric, ...] = (
    Metric("mean_squared_weight", mean_squared_weight, frozenset({"weights"}), PAPER),
    find_metric("activation.value.l1.cardinality@producers"),
    find_metric("activation.gradient.abs_of_sum@producers"),
    find_metric("activation.taylor.abs_of_sum@producers"),
    Metric("half_squared_taylor", half_squared_taylor, frozenset({"backward"}), PAPER),
)
"""The paper's five, measured at the convolutions' outputs."""


@dataclass(frozen=True)
class Myopic:
    """How the composition goes about it; by default as in the paper."""

    metrics: tuple[str | Metric, ...] = FOUNDING_METRICS
    """The pool: names, or metrics that are in no table."""
    candidates: int = 16
    """Channels that the oracle compares before each step; with one metric and 1, that metric goes
    its own way and nothing is measured."""
    images: int = 256
    """Images that a step's candidates are compared on, drawn afresh before each step."""
    scoring_images: int = 256
    """Images behind the scores, drawn afresh before each step."""
    per_weight_scores: bool = False
    """Rank by score per unit of cost that goes with the channel."""
    per_weight_loss: bool = False
    """Prefer the lowest loss change per unit of cost removed to the lowest loss change."""
    channels_per_step: int = 1
    """How many of the best candidates go together, each measured alone, from any groups."""
    mode: Mode = "plain"
    """`compensated`: a channel's mean takes its place, here from the scoring images."""

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        names = [metric.name for metric in self.pool]
        if not names:
            raise SelectorError("an empty pool of metrics nominates nothing; name at least one")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise SelectorError(f"metric {twice!r} is twice in the pool")
        for field, least in _LEAST.items():
            whole_number(field, getattr(self, field), least)
        if self.channels_per_step > self.candidates:
            raise SelectorError(
                f"channels_per_step={self.channels_per_step} is more than candidates="
                f"{self.candidates}; nominate at least as many as go"
            )
        if self.mode not in ("plain", "compensated"):
            raise SelectorError(f"unknown mode {self.mode!r}; known: plain, compensated")

    @property
    def pool(self) -> tuple[Metric, ...]:
        """The metrics themselves."""
        return tuple(find_metric(m) if isinstance(m, str) else m for m in self.metrics)


_LEAST = {"candidates": 1, "images": 2, "scoring_images": 1, "channels_per_step": 1}


def nominate(rankings: Mapping[str, Sequence[Channel]], count: int) -> dict[Channel, list[str]]:
    """The first distinct channels of the rankings, which take turns, one place after the other.

    Args:
        rankings: Metric -> channels, the first to go in front.
        count: Candidates to nominate; fewer where the rankings end.

    Returns:
        Channel -> the metrics that had named it by then, in the order of nomination.
    """
    found: dict[Channel, list[str]] = {}
    for turn in zip_longest(*rankings.values()):
        for metric, channel in zip(rankings, turn, strict=True):
            if channel is None:
                continue
            if channel not in found and len(found) == count:
                return found
            found.setdefault(channel, []).append(metric)
    return found
