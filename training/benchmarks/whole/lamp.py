r"""Widths by LAMP for channels: one ranking of the whole network, and nothing that is learnt.

.. math:: s_c = \frac{\lVert w_c \rVert^2}{\sum_{c' : \lVert w_{c'} \rVert \ge \lVert w_c \rVert}
    \lVert w_{c'} \rVert^2}

of the channels of one group. The lowest of all groups go first, until the target is met; the
largest channel of a group scores 1 and stays.

Source:
    Lee et al., ICLR 2021 (arXiv 2010.07611), for weights; channels by the norm of their filters.
"""

from bisect import bisect_left
from collections.abc import Mapping

import numpy as np
from torch import nn

from selector.data.batches import Batches
from selector.data.calibration import Calibration
from selector.data.forward import probe_inputs
from selector.network.tracing import Groups, find_groups
from selector.saliency.scoring import needs_of, score_signals
from selector.statistics.collect import measure_signals
from selector.typing import Matrix

MOST = 0.9
"""Share of its channels that a group loses at most, as in `prune`."""


def lamp_shares(model: nn.Module, images: Batches, keep_macs: float) -> dict[str, float]:
    """Share of the channels that groups lose, so that the MACs are just below the target.

    Args:
        model: The network; left exactly as found.
        images: A few, as the network is called with.
        keep_macs: Share of the multiply-accumulates that stays.
    """
    calibration = Calibration(images)
    groups = find_groups(model, probe_inputs(model, calibration))
    measured = measure_signals(model, calibration, groups.prunable, needs=needs_of(["l2"]))
    norms = {name: s["l2"].numpy() for name, s in score_signals(measured, ["l2"]).items()}
    counts = lowest_first(groups, {name: lamp(one) for name, one in norms.items()}, keep_macs)
    return {n: count / groups.prunable[n].channels for n, count in counts.items() if count}


def lamp(norms: Matrix) -> Matrix:
    """Scores of a group's channels, in (0, 1].

    Args:
        norms: Euclidean norms of their filters, shape (channels,).
    """
    squares = np.square(norms)
    order = np.argsort(squares, kind="stable")
    # From a channel to the largest.
    above = np.cumsum(squares[order][::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = squares[order] / np.maximum(above, np.finfo(np.float64).tiny)
    return scores


def lowest_first(
    groups: Groups, scores: Mapping[str, Matrix], keep_macs: float
) -> Mapping[str, int]:
    """Channels that go from every group: the lowest of all, one by one, until the target is met."""
    most = {name: int(MOST * len(own)) for name, own in scores.items()}
    steps = sorted(
        (float(score), name) for name, own in scores.items() for score in np.sort(own)[: most[name]]
    )
    whole = groups.costs.total("macs")

    def counts(number: int) -> dict[str, int]:
        found = dict.fromkeys(scores, 0)
        for _, name in steps[:number]:
            found[name] += 1
        return found

    def met(number: int) -> bool:
        removed = {groups.prunable[name]: count for name, count in counts(number).items()}
        return groups.costs.total("macs", removed) <= keep_macs * whole

    return counts(bisect_left(range(len(steps)), True, key=met))
