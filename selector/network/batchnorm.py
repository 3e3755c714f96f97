"""BatchNorm statistics estimated from calibration images."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from selector.data.batches import Batches, check_batches
from selector.data.forward import call, evaluating, read
from selector.network.layers import NORMALISATION


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
