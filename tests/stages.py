"""A network that is to be pruned, with all of the way ahead."""

from torch import nn

from selector.data.calibration import Calibration
from selector.planning.choose import first_stage
from selector.planning.limits import Limits
from selector.planning.stage import Stage
from selector.planning.target import Target

LIMITS = Limits.of(
    ignore=(), max_ratio=0.9, max_ratios=None, ratios=None, round_to=1, min_channels=1
)


def stage_before(model: nn.Module, calibration: Calibration, keep_macs: float) -> Stage:
    """Before the first cut, within the limits that are the default."""
    return first_stage(model, calibration, Target.of({"keep_macs": keep_macs}), LIMITS)
