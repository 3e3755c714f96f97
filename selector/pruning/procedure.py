"""What is done in every round of a pruning, and how many rounds there are by default."""

import math
from dataclasses import dataclass

from selector.data.calibration import Calibration
from selector.planning.limits import Widths
from selector.planning.method import Method
from selector.planning.target import Target
from selector.pruning.apply import FineTune
from selector.pruning.callbacks import Callback
from selector.pruning.repairing import When
from selector.pruning.resume import RoundStore

STEP, REPAIRED_STEP = 0.1, 0.3
"""By default a round takes this share of what the one before it left; the second where what is left
is repaired, since more rounds then cost time and hardly gain anything."""


def default_rounds(target: Target, widths: Widths, *, repaired: bool = True) -> int:
    """So many rounds that each takes about a tenth of what is left, or three tenths with repair.

    >>> default_rounds(Target("macs", 0.5), Widths({}, 0.9, 1))
    2
    >>> default_rounds(Target("macs", 0.5), Widths({}, 0.9, 1), repaired=False)
    7
    """
    shares = [target.keep, *(1 - ratio for ratio in widths.ratios.values())]
    step = REPAIRED_STEP if repaired else STEP
    return max(1, math.ceil(math.log(min(shares)) / math.log(1 - step) - 1e-9))


@dataclass(frozen=True, eq=False, kw_only=True)
class Procedure:
    """What is done in every round, and when to stop."""

    method: Method
    rounds: int
    finetune: FineTune | None = None
    max_loss_change: float | None = None
    base_loss: float | None = None
    """Loss of the unpruned network on the calibration images; None where they have no targets."""
    progress: bool = False
    store: RoundStore | None = None
    """Where the state is written after every round."""
    repair: When = "never"
    """When what is left is refitted towards the network that it was cut from."""
    repair_required: bool = False
    """Whether a repair that is impossible stops the run; else it is left out, with a warning."""
    distil: float | None = None
    """Minutes of unlabelled distillation at the end."""
    callbacks: tuple[Callback, ...] = ()
    """Called after every round that is kept."""
    judged_on: Calibration | None = None
    """Images on which the network is evaluated before the last repair, for the report."""
