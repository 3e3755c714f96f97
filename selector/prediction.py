"""What the selector says of one decision: whom to trust, how surely, and who comes next."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from selector.features import Matrix, distinct


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
    """Predicted normalised regret of the single best minus that of the predicted best."""
    gain_error: float
    """Its standard error over the jackknife of training networks."""
    proposals: Mapping[str, tuple[int, ...]]
    """Arm -> the channels that it would remove."""
    regret: Mapping[str, float]
    """Arm -> predicted normalised regret; the lowest is the predicted best."""
    loss_change_nats: Mapping[str, float]
    """Arm -> predicted loss change of its proposal."""
    loss_change_interval: Mapping[str, tuple[float, float]]
    """Arm -> 90 % interval of that loss change, in nats."""

    def shortlist(self, count: int | None) -> list[str]:
        """The trusted arm, then the most promising ones; never two with the same channels."""
        order = [self.trusted, *sorted(self.regret, key=self.regret.__getitem__)]
        return distinct(self.proposals, order)[:count]


def decide(
    proposals: Mapping[str, tuple[int, ...]], regrets: Matrix, nats: Matrix, single_best: str
) -> Prediction:
    """Weigh the boosters' regrets, shape (boosters, arms): trust the best, or keep the single best.

    The predicted best is trusted where its gain over the single best exceeds the gain's jackknife
    standard error, or where both would remove the same channels.
    """
    arms = list(proposals)
    mean = regrets.mean(0)
    best, fixed = int(mean.argmin()), arms.index(single_best)
    gains = regrets[:, fixed] - regrets[:, best]
    count = len(gains)
    # Jackknife over folds of networks: the boosters share most of their data.
    error = float(((count - 1) / count * np.square(gains - gains.mean()).sum()) ** 0.5)
    gain = float(gains.mean())
    fell_back = proposals[arms[best]] != proposals[single_best] and gain <= error
    trusted = single_best if fell_back else arms[best]
    order = sorted(arms, key=lambda arm: float(mean[arms.index(arm)]))
    others = [arm for arm in order if proposals[arm] != proposals[trusted]]
    return Prediction(
        trusted=trusted,
        runner_up=others[0] if others else None,
        fell_back=fell_back,
        gain=gain,
        gain_error=error,
        proposals=proposals,
        regret={arm: float(value) for arm, value in zip(arms, mean, strict=True)},
        loss_change_nats={arm: float(value) for arm, value in zip(arms, nats, strict=True)},
        # A factor of four to either side, until intervals are learnt.
        loss_change_interval={
            arm: (float(value) - 0.75 * abs(float(value)), float(value) + 3 * abs(float(value)))
            for arm, value in zip(arms, nats, strict=True)
        },
    )
