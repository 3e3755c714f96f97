"""Widths by measured damage: what single groups' losses do to the network's outputs.

Every group alone loses a few shares of its channels, as the criterion chooses them; what stays
stands in for what went, as repair will have it, and the divergence from the present outputs is read
on a few images that this was not fitted to: else wide groups would look cheap. No labels are
needed, and nothing that was learnt from other networks.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from tqdm import tqdm

from selector.data.batches import Batches, batch_size
from selector.data.calibration import Calibration
from selector.data.forward import evaluating, float_tensors, probe_inputs, run_batch
from selector.data.loss import Loss, LossChange
from selector.data.sampling import split_images
from selector.errors import SelectorError
from selector.learning.damage_curve import Curve, curve_of, rungs
from selector.network.folding import Prediction
from selector.network.groups import Group
from selector.oracle.oracle import Oracle
from selector.planning.allocation import allocate_by_damage
from selector.planning.candidates import Criterion, Survey, Trial
from selector.planning.stage import Stage
from selector.repair.distillation.divergence import real_tensors
from selector.typing import Channels

IMAGES = 64
"""Images that damage is measured on: differences between groups are large, and paired by image."""
FEWEST = 8
"""Images that are kept apart; where there are less than twice as many, all measure."""


@dataclass(frozen=True)
class LeastMeasuredDamage:
    """Where the least damage is measured per unit of cost saved."""

    text = "allocation by measured damage"
    _known: WeakKeyDictionary[Survey, Mapping[str, Curve]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )
    """Curves of the networks as they were surveyed: several steps may be tried with each."""

    def counts(self, stage: Stage, trial: Trial, criterion: Criterion) -> dict[str, int]:
        """Channels that every group loses now; see `allocate_by_damage`."""
        survey = trial.survey
        if survey not in self._known:
            self._known[survey] = measured_curves(stage, trial, criterion)
        return allocate_by_damage(stage, self._known[survey], wary=False)


def measured_curves(stage: Stage, trial: Trial, criterion: Criterion) -> dict[str, Curve]:
    """Group -> damage by the number of channels that go, one reading of some images for each.

    Nats times the square of the temperature for classifiers, shares of the variance for other
    outputs; nats of the loss where the network returns nothing but losses.

    Args:
        stage: Where the network stands.
        trial: The network, its scores and its images.
        criterion: Chooses the channels.
    """
    model, survey = trial.model, trial.survey
    images, others, comparable = _apart(model, survey.scoring)
    reference = model if comparable else None
    prediction = Prediction.measured(model, others, stage.groups.prunable.values())
    oracle = Oracle("repaired", prediction=prediction, batch_statistics=True)
    free = [stage.groups.prunable[name] for name in stage.free]
    sets = _first_choices(
        criterion, survey, {g: rungs(stage.options(g.name), g.channels) for g in free}
    )
    curves: dict[str, Curve] = {}
    for group in tqdm(free, "measuring widths", disable=not trial.progress, leave=False):
        if not sets[group]:
            curves[group.name] = curve_of([], [])
            continue
        measured = oracle.measure(
            model, images, {group: sets[group]}, loss=_loss_of(images), reference=reference
        )
        oracle = replace(oracle, check=False)  # Once is enough.
        found: list[LossChange] = (measured.divergences or measured.changes)[group]
        damages = [max(change.nats, 0.0) for change in found]
        curves[group.name] = curve_of([len(one) for one in sets[group]], damages)
    return curves


def _apart(model: nn.Module, scoring: Calibration) -> tuple[Calibration, Batches, bool]:
    """Images that measure, and those that tell what stands in for what; all are both if need be.

    And whether the network gives outputs for them that can be compared.
    """
    first, others = split_images(scoring, IMAGES)
    if sum(batch_size(*batch) for batch in first) >= FEWEST:
        images = Calibration(first, scoring.loss)
        with suppress(SelectorError):  # It takes batches of one size.
            return images, others, _has_outputs(model, images)
    return scoring, scoring, _has_outputs(model, scoring)


def _first_choices(
    criterion: Criterion, survey: Survey, counts: Mapping[Group, Sequence[int]]
) -> dict[Group, list[Channels]]:
    """The criterion's first sets of every group, as many channels as asked; all groups at once."""
    found: dict[Group, list[Channels]] = {group: [] for group in counts}
    for step in range(max(map(len, counts.values()), default=0)):
        asked = {group: some[step] for group, some in counts.items() if step < len(some)}
        for group, choices in criterion.options(survey, asked).items():
            found[group].append(choices[0].remove)
    return found


@torch.no_grad()
def _has_outputs(model: nn.Module, images: Calibration) -> bool:
    with evaluating(model):
        outputs = run_batch(model, probe_inputs(model, images), 0)
    return bool(real_tensors(outputs))


def _loss_of(images: Calibration) -> Loss | None:
    """The loss; where there are no labels, one that is always zero: the outputs are compared."""
    return _nothing if images.unlabelled else images.loss


def _nothing(outputs: object, targets: object) -> Tensor:
    return float_tensors(outputs)[0].new_zeros(())
