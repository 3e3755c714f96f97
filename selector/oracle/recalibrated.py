"""Loss changes of removals after which BatchNorm is recalibrated."""

from collections.abc import Sequence

import torch
from torch import nn

from selector.data.batches import Batches
from selector.data.forward import evaluating
from selector.data.loss import Loss, LossChange, Objective, measure_losses
from selector.network.batchnorm import recalibrate_batchnorm
from selector.network.copying import copy_of
from selector.network.groups import Group
from selector.network.surgery import apply_cuts, cuts_of
from selector.typing import ChannelSet


def recalibrated_changes(
    model: nn.Module,
    batches: Batches,
    group: Group,
    channel_sets: Sequence[ChannelSet],
    *,
    calibration: Batches,
    loss: Loss | None = None,
) -> list[LossChange]:
    """Loss changes when BatchNorm is recalibrated after each removal.

    The slowest measurement: every candidate costs a copy of the network, a pass over the
    calibration images, and one over the batches. Before the removal the network is as it was given.

    Args:
        model: The network; left exactly as found.
        batches: Images that the loss is measured on.
        group: The group that loses channels.
        channel_sets: Channels to remove, one sequence for each candidate.
        calibration: Images that the statistics are estimated from.
        loss: Mean loss of a batch; cross-entropy by default.
    """
    objective = Objective(loss)
    sets = [group.checked(channels) for channels in channel_sets]
    with evaluating(model):
        before = measure_losses(model, batches, objective)
    found: dict[tuple[int, ...], LossChange] = {}
    for channels in dict.fromkeys(sets):
        smaller = copy_of(model).eval()
        apply_cuts(smaller, cuts_of([(group, channels)]) if channels else ())
        with torch.no_grad():
            recalibrate_batchnorm(smaller, calibration)
        after = measure_losses(smaller, batches, objective)
        found[channels] = after.change_from(before)
    return [found[channels] for channels in sets]
