"""What the report measures of the unpruned and of the pruned network: layers, memory, latency."""

import logging
import time
from collections.abc import Mapping

from torch import nn

from selector.data.batches import batch_size
from selector.data.calibration import Calibration
from selector.data.forward import probe_inputs
from selector.network.footprint import Footprint, footprint
from selector.network.groups import Group
from selector.network.latency import IMAGES, REPEATS, Timed, time_both
from selector.network.tracing import Groups
from selector.pruning.report_values import LayerRow

LOG = logging.getLogger("selector")

BUDGET = 2.0
"""Seconds that timing takes, about; slow networks are timed in few pairs, by a single image."""
FEWEST = 3
"""Pairs of timings at least."""


def layer_rows(before: Groups, after: Groups) -> tuple[LayerRow, ...]:
    """Convolutions and linear layers, before and after.

    Args:
        before: Groups of the unpruned network, with what its layers cost.
        after: The same of the pruned network.
    """
    owner = _owners(before.prunable)
    rows = []
    for name, old in before.costs.layers.items():
        new = after.costs.layers.get(name)
        if new is None or not (old.weights or old.macs):
            continue  # Normalisation, or a layer that does not run.
        depthwise = "depthwise convolution" if old.channel_wise else "convolution"
        rows.append(
            LayerRow(
                layer=name,
                kind=depthwise if old.convolution else "linear",
                group=owner.get(name),
                outputs=(old.outputs, new.outputs),
                inputs=(old.inputs, new.inputs),
                macs=(old.macs + old.products, new.macs + new.products),
                parameters=(old.weights + old.extras, new.weights + new.extras),
            )
        )
    return tuple(rows)


def _owners(groups: Mapping[str, Group]) -> dict[str, str]:
    """Layer -> the group that its outputs belong to."""
    return {
        part.layer: name
        for name, group in groups.items()
        for part in group.slices
        if part.side != "in"
    }


def compare_running(
    before: nn.Module, after: nn.Module, calibration: Calibration, timed: Timed | None
) -> tuple[tuple[Footprint, Footprint] | None, Timed | None]:
    """Memory of both networks, and their latency in turns; a few forward passes.

    Args:
        before: The unpruned network.
        after: The pruned one.
        calibration: Its first batch gives the images.
        timed: Latency where it was the target, and is known already.

    Returns:
        None for what could not be measured; the reason is logged. Figures of the report are no
        reason to lose a pruning.
    """
    try:
        inputs = probe_inputs(before, calibration, IMAGES)
        begin = time.perf_counter()
        footprints = footprint(before, inputs), footprint(after, inputs)
        # Both ran once, slower than they will; a pair runs each twice, the first time to warm up.
        pair = 2 * (time.perf_counter() - begin)
        if timed is None and pair > BUDGET:
            images = batch_size(inputs)
            inputs = probe_inputs(before, calibration, 1)
            pair *= batch_size(inputs) / images
        repeats = max(FEWEST, min(REPEATS, int(BUDGET / max(pair, 1e-9))))
        timed = timed or time_both(before, after, inputs, batch_size(inputs), repeats)
    except Exception as error:
        LOG.info("latency was not measured: %s: %s", type(error).__name__, error)
        return None, timed
    return footprints, timed
