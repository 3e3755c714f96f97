"""What the selector predicts for one decision, and the arms that an oracle should try in it."""

from collections.abc import Mapping
from dataclasses import dataclass

from selector.learning.features import distinct


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the selector says of one decision."""

    trusted: str
    """The arm to follow: the predicted best, or the single best where the gain is not credible."""
    runner_up: str | None
    """The next-best arm that proposes other channels; None where all propose the same."""
    fell_back: bool
    """Whether the single best is followed although another arm was predicted to be better."""
    gain: float
    """Predicted cost of the single best minus that of the predicted best."""
    gain_error: float
    """Its standard error over the jackknife of training networks."""
    out_of_distribution: float
    """Distance to the training decisions, over that within which 99 % of those of a network not
    learnt from lie: above one, the decision is outside, and the single best is followed."""
    proposals: Mapping[str, tuple[int, ...]]
    """Arm -> the channels that it would remove."""
    cost: Mapping[str, float]
    """Arm -> predicted cost, the predicted best's being zero: its normalised regret, and the
    selector's `damage_weight_` times the log of its damage."""
    loss_change_nats: Mapping[str, float]
    """Arm -> predicted loss change of its proposal."""
    loss_change_interval: Mapping[str, tuple[float, float]]
    """Arm -> 90 % interval of the loss change, from the errors on networks not learnt from."""
    single_best: str
    """The arm that is followed where nothing better is known."""

    @property
    def outside(self) -> bool:
        """Whether the decision lies outside what was learnt from."""
        return self.out_of_distribution > 1

    def shortlist(self, count: int | None) -> list[str]:
        """Arms for the oracle to measure, never two that propose the same channels.

        The trusted arm, the single best, then those that are predicted to cost least.

        Args:
            count: How many at most; None for all.
        """
        order = [self.trusted, self.single_best, *sorted(self.cost, key=self.cost.__getitem__)]
        return distinct(self.proposals, order)[:count]
