"""Records of repaired removal: sets of every kind, and the divergence beside the loss."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from selector.data.calibration import Calibration
from selector.data.loss import LossChange
from selector.network.folding import Prediction
from selector.network.groups import Group
from selector.oracle.oracle import Oracle
from selector.saliency.proposals.knowledge import measure_sets, set_proposals
from selector.statistics.gate_fisher import Pairs
from selector.typing import Channels


class RepairedRemoval:
    """Sets, and their loss changes and divergences with what went folded into what stays.

    Args:
        model: The network in this state; left as found.
        original: The unpruned network.
        calibration: The images that sets are proposed by, and channels predicted from.
        groups: Its groups.
        pairs: Group -> what every two channels do to the loss; see `measure_sets`.
        seed: Of the labels that softened outputs draw.
    """

    def __init__(
        self,
        model: nn.Module,
        original: nn.Module,
        calibration: Calibration,
        groups: Mapping[str, Group],
        pairs: Mapping[str, Mapping[str, Pairs]],
        seed: int,
    ) -> None:
        self._model, self._original = model, original
        self.sets = measure_sets(
            model, calibration, groups, set_proposals(), pairs=pairs, seed=seed
        )
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
