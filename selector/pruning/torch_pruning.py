"""The selector as an `importance` for Torch-Pruning: scores of all groups on one scale, in nats."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor, nn

from selector.data.batches import Batches
from selector.data.calibration import Calibration
from selector.data.checks import check_model, share
from selector.data.forward import probe_inputs
from selector.data.loss import Loss
from selector.learning.damage_curve import Curve, damage_curve
from selector.learning.selector import SaliencySelector
from selector.network.tracing import Groups, find_groups
from selector.planning.candidates import survey_network
from selector.planning.criteria import SelectorCriterion
from selector.planning.limits import Widths
from selector.planning.stage import Stage
from selector.planning.target import Target
from selector.records.decision import Decision, GroupView
from selector.typing import Matrix, Numbers

KEPT_NATS = 1e6
"""Price of channels beyond the most that a group may lose."""


class SelectorImportance:
    """A callable that Torch-Pruning's pruners take for their `importance`.

    It ranks a group's channels by the metric that the selector trusts there, and gives each the
    loss change, in nats, that the selector predicts of taking it after those below it. So scores
    of different groups compare, and global pruning spends its budget where the least damage is
    predicted. The network is scored again when its shapes have changed, as between the steps of
    an iterative pruning. Groups that this library leaves alone are skipped: Torch-Pruning then
    leaves them alone, too.

    Args:
        model: The network that is pruned; it is only read.
        batches: Re-iterable of (inputs, targets) for the scores.
        selector: The shipped one by default.
        loss: Mean loss of a batch; cross-entropy by default.
        ratio: Share of a group's channels at which the selector is asked whom to trust.

    Example:
        `tp.pruner.BasePruner(model, inputs, importance=SelectorImportance(model, batches),
        global_pruning=True, pruning_ratio=0.5, ignored_layers=[model.fc])`
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        *,
        selector: SaliencySelector | None = None,
        loss: Loss | None = None,
        ratio: float = 0.25,
    ) -> None:
        check_model(model)
        self._model, self._ratio = model, share("ratio", ratio)
        self._calibration = Calibration(batches, loss)
        self._target = Target("macs", 0.5)
        self._criterion = SelectorCriterion(selector or SaliencySelector.shipped())
        self._shapes: tuple[torch.Size, ...] | None = None
        self._first: Groups | None = None
        self._groups: Groups | None = None
        self._scores: dict[str, Tensor] = {}

    def __call__(self, group: Any) -> Tensor | None:
        """Score the channels of one of Torch-Pruning's groups.

        Args:
            group: As its dependency graph gives it, with all its indices.

        Returns:
            Scores of shape (outputs of the root,), in nats; the lowest is to go first. None where
            this library leaves the group alone.
        """
        self._refresh()
        root = group[0].dep.target.module
        name = next((n for n, module in self._model.named_modules() if module is root), None)
        assert self._groups is not None
        for found in self._groups.prunable.values():
            part = next(
                (p for p in found.slices if p.layer == name and p.side in ("out", "both")), None
            )
            if part is not None:
                channel = dict(zip(part.indices, part.channels, strict=True))
                if not channel.keys() >= set(group[0].idxs):
                    return None  # Some of its channels have to stay.
                values = self._scores[found.name]
                return torch.stack([values[channel[index]] for index in group[0].idxs])
        return None

    def _refresh(self) -> None:
        """Score the network, unless it is as it was when last scored."""
        shapes = tuple(p.shape for p in self._model.parameters())
        if shapes == self._shapes:
            return
        probe = probe_inputs(self._model, self._calibration)
        groups = find_groups(self._model, probe)
        self._groups, self._first = groups, self._first or groups
        widths = Widths.of(groups.required(), 0.9, 1)
        stage = Stage(groups, widths, self._target, share=1.0, start=self._first.costs)
        survey = survey_network(self._model, self._calibration, stage, self._criterion)
        self._scores = {
            name: self._nats(view, stage.options(name)) for name, view in survey.views.items()
        }
        self._shapes = shapes

    def _nats(self, view: GroupView, options: list[int]) -> Tensor:
        """Predicted loss change of each channel, taken after those that its metric ranks lower."""
        selector = self._criterion.selector
        channels = view.channels
        count = max(1, round(self._ratio * channels))
        trusted = selector.predict(Decision(view, count)).trusted
        curve = damage_curve(selector, view, options)
        order = _order(view, trusted, sorted(curve)[1:])
        scores = np.empty(channels)
        scores[order] = marginal(curve, channels)
        return torch.from_numpy(scores)


def _order(view: GroupView, arm: str, counts: Sequence[int]) -> Numbers:
    """The group's channels in the order in which an arm gives them up.

    A proposal of sets is asked for several numbers of channels: what is in the smaller sets goes
    first, and channels that no set tells apart go in their own order.
    """
    if arm in view.scores:
        return np.argsort(view.scores[arm], kind="stable")
    assert view.sets is not None, "no arm proposes sets where nothing is known of them"
    ranks = np.full(view.channels, len(counts))
    for rank, count in reversed(list(enumerate(counts))):
        ranks[list(view.sets.proposed(count)[arm])] = rank
    return np.argsort(ranks, kind="stable")


def marginal(curve: Curve, channels: int) -> Matrix:
    """What one channel more costs, for every rank, from the damage at some numbers of channels.

    Differences of the monotone cubic through the points (Fritsch and Carlson), made to rise.

    Args:
        curve: Channels removed -> predicted loss change; 0 -> 0, never falling.
        channels: Channels of the group.

    Returns:
        Nats, shape (channels,), strictly ascending; prohibitive beyond the curve's end.
    """
    counts = sorted(curve)
    ranks = np.arange(channels + 1)
    if len(counts) == 1:
        costs = np.zeros(channels)
    else:
        damage = PchipInterpolator(counts, [curve[count] for count in counts])
        costs = np.diff(damage(np.minimum(ranks, counts[-1])))
    # What goes last costs no less; a hair more for every rank keeps order where it is straight.
    found: Matrix = np.maximum.accumulate(costs) + 1e-9 * ranks[1:] / channels
    # Torch-Pruning leaves a group whole when all of it is to go: the last must not seem cheap.
    found[counts[-1] :] += KEPT_NATS
    return found
