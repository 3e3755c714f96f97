"""Whether a selector knows networks like this one: asked before its groups are scored."""

from dataclasses import replace

import numpy as np
from torch import nn

from selector.data.calibration import Calibration
from selector.learning.selector import SaliencySelector
from selector.learning.table import NUMBERS, described
from selector.planning.stage import Stage
from selector.records.decision import Decision
from selector.records.describe import describe_groups
from selector.saliency.registry import find_metric
from selector.statistics.collect import measure_signals

MOSTLY = 0.5
"""Share of the groups that lie outside, above which a network is unlike what was learnt from."""
NO_METRICS = (find_metric("random"),)
"""What stands for scores where a group is described by facts and sets alone: chance."""
SHARE = 0.25
"""Of every group's channels, for which it is judged."""


def is_unlike(
    selector: SaliencySelector, model: nn.Module, stage: Stage, scoring: Calibration
) -> bool:
    """Whether most decisions on a network lie outside of what a selector learnt from.

    Judged by the facts of its groups and by its loss on the first batch: one forward pass of that.

    Args:
        selector: Which knows where the decisions lie that it learnt from.
        model: The network; left as found.
        stage: Its groups and costs.
        scoring: The images.

    Raises:
        SelectorError: The selector is not fitted, or the images cannot be used.
    """
    selector.check_fitted()
    known = selector.training_distribution
    signals = measure_signals(
        model, [scoring.first], stage.groups.prunable, needs=["forward"], loss=scoring.loss
    )
    views = describe_groups(model, stage.groups, signals, NO_METRICS, macs_kept=stage.macs_kept)
    # How many images there will be is not known yet; that is nothing unusual.
    usual = float(known.mean[NUMBERS.index("log_images")])
    decisions = [
        Decision(
            replace(view, context=replace(view.context, log_images=usual)),
            max(1, round(SHARE * view.channels)),
        )
        for view in views.values()
    ]
    if not decisions:
        return False
    return float(np.mean(known.distance(described(decisions)) > 1)) > MOSTLY
