"""Records of repaired removal: sets of every kind, and the divergence beside the loss."""

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import nn

from selector.data.calibration import Calibration
from selector.data.loss import LossChange
from selector.network.folding import Prediction
from selector.network.groups import Group
from selector.oracle.oracle import Oracle
from selector.saliency.proposals.registry import PROPOSALS
from selector.saliency.proposals.set_errors import NEEDS, SetErrors
from selector.statistics.collect import measure_signals
from selector.statistics.gradient_source import Gradients
from selector.typing import Channels


class SetProposals:
    """What every proposal of sets would remove, from one pass for each source of gradients.

    Args:
        model: The network in this state; left as found.
        calibration: The images.
        groups: Its groups.
        seed: Of the labels that softened outputs draw.
    """

    def __init__(
        self, model: nn.Module, calibration: Calibration, groups: Mapping[str, Group], seed: int
    ) -> None:
        self._signals = {}
        self._errors: dict[str, SetErrors] = {}
        self._proposals = [one for one in PROPOSALS.values() if one.kind == "set"]
        for source in get_args(Gradients):
            asked = [one for one in self._proposals if one.gradients == source]
            needs = {need for one in asked for need in one.needs}
            if source == "softened":
                needs |= set(NEEDS)
            self._signals[source] = measure_signals(
                model,
                calibration,
                groups,
                needs=sorted(needs),
                loss=calibration.loss,
                gradients=source,
                generator=torch.Generator().manual_seed(seed),
            )

    def sets(self, group: str, count: int) -> dict[str, Channels]:
        """Proposal -> the channels that go."""
        return {
            one.name: one.checked(group, self._signals[one.gradients][group], count)
            for one in self._proposals
        }

    def errors(self, group: str, sets: Sequence[Channels]) -> dict[Channels, list[float]]:
        """Set -> its `ERRORS`."""
        if group not in self._errors:
            self._errors[group] = SetErrors.of(self._signals["softened"][group])
        return dict(zip(sets, self._errors[group].of_sets(sets).tolist(), strict=True))


class RepairedRemoval:
    """Sets, and their loss changes and divergences with what went folded into what stays.

    Args:
        model: The network in this state; left as found.
        original: The unpruned network.
        calibration: The images that sets are proposed by, and channels predicted from.
        groups: Its groups.
        seed: See `SetProposals`.
    """

    def __init__(
        self,
        model: nn.Module,
        original: nn.Module,
        calibration: Calibration,
        groups: Mapping[str, Group],
        seed: int,
    ) -> None:
        self._model, self._original = model, original
        self.proposals = SetProposals(model, calibration, groups, seed)
        prediction = Prediction.measured(model, calibration, groups.values())
        self._oracle = Oracle("repaired", prediction=prediction, batch_statistics=True)

    def measured(
        self, group: Group, sets: Sequence[Channels], part: Calibration
    ) -> dict[Channels, tuple[LossChange, LossChange]]:
        """Set -> change of the loss and of the divergence, on some images."""
        found = self._oracle.measure(
            self._model, part, {group: sets}, loss=part.loss, reference=self._original
        )
        pairs = zip(found.changes[group], found.divergences[group], strict=True)
        return dict(zip(sets, pairs, strict=True))
