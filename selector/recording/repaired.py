"""Records of repaired removal: sets of every kind, and the divergence beside the loss."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from selector.data.calibration import Calibration
from selector.data.loss import LossChange
from selector.network.folding import Prediction
from selector.network.groups import Group
from selector.oracle.oracle import Oracle
from selector.records.decision import SetKnowledge
from selector.typing import Channels


class RepairedRemoval:
    """Sets, and their loss changes and divergences with what went folded into what stays.

    Args:
        model: The network in this state; left as found.
        original: The unpruned network.
        calibration: The images that channels are predicted from.
        groups: Its groups.
        sets: Group -> what is known of its sets.
    """

    def __init__(
        self,
        model: nn.Module,
        original: nn.Module,
        calibration: Calibration,
        groups: Mapping[str, Group],
        sets: Mapping[str, SetKnowledge],
    ) -> None:
        self._model, self._original, self.sets = model, original, sets
        prediction = Prediction.measured(model, calibration, groups.values())
        self._oracle = Oracle("repaired", prediction=prediction, batch_statistics=True)

    def measured(
        self, group: Group, sets: Sequence[Channels], part: Calibration
    ) -> dict[Channels, tuple[LossChange, LossChange]]:
        """Set -> change of the loss and of the divergence, on some images."""
        found = self._oracle.measure(
            self._model, part, {group: sets}, loss=part.loss, reference=self._original
        )
        self._oracle = replace(self._oracle, check=False)  # Once is enough.
        pairs = zip(found.changes[group], found.divergences[group], strict=True)
        return dict(zip(sets, pairs, strict=True))
