"""BatchNorm statistics estimated anew, and what a removal costs once that has been done."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from selector.cutting import apply_cuts, cuts_of
from selector.groups import NORMALISATION, ChannelSet, Group
from selector.objective import Loss, Objective, image_losses
from selector.reading import Batches, call, check_batches, evaluating, read
from selector.rivals import LossChange, summary


def recalibrate_batchnorm(model: nn.Module, batches: Batches) -> int:
    """Estimate the running statistics of all BatchNorm layers anew, in place.

    Every batch counts the same, whatever the layers' momentum, which is put back afterwards.

    Returns:
        Number of layers recalibrated.
    """
    check_batches(batches)
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, NORMALISATION) and layer.track_running_stats
    ]
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    with evaluating(model):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        try:
            for inputs, _ in read(model, batches):
                call(model, inputs)
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
    return len(layers)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Context in which BatchNorm goes by every batch's own statistics, as after recalibration.

    One pass instead of two; the statistics that the layers keep are not touched.
    """
    kept = [
        (layer, layer.running_mean, layer.running_var)
        for layer in model.modules()
        if isinstance(layer, NORMALISATION)
    ]
    try:
        for layer, _, _ in kept:
            layer.running_mean = layer.running_var = None
        yield
    finally:
        for layer, mean, variance in kept:
            layer.running_mean, layer.running_var = mean, variance


def recalibrated_changes(
    model: nn.Module,
    batches: Batches,
    group: Group,
    channel_sets: Sequence[ChannelSet],
    *,
    calibration: Batches,
    loss: Loss | None = None,
) -> list[LossChange]:
    """Loss changes when BatchNorm is recalibrated after each removal: the dearest measurement.

    Every candidate costs a copy of the network, a pass over the calibration images, and one over
    the batches. Before the removal the network is as it was given.

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
        before, _ = image_losses(model, batches, objective)
    found: dict[tuple[int, ...], LossChange] = {}
    for channels in dict.fromkeys(sets):
        smaller = copy.deepcopy(model).eval()
        apply_cuts(smaller, cuts_of([(group, channels)]) if channels else ())
        with torch.no_grad():
            recalibrate_batchnorm(smaller, calibration)
        after, _ = image_losses(smaller, batches, objective)
        found[channels] = summary(after - before, len(before))
    return [found[channels] for channels in sets]
