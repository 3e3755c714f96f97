r"""Widths by measured damage: what single groups' losses do to the network's outputs.

Every group alone loses a quarter of its channels, as the criterion chooses them; what stays stands
in for what went, as repair will have it, and the divergence from the present outputs is read on a
few images that this was not fitted to: else wide groups would look cheap. How damage D grows with
the number n of channels that go is that of the K-FAC error E of the criterion's sets
(`saliency/proposals/set_errors.py`), which costs no forward pass, and so

.. math:: D(n) = E(n) \, D(n_{1/4}) / E(n_{1/4})

Where there are no such errors, every number of the ladder is measured. No labels are needed, and
nothing that was learnt from other networks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from selector.data.batches import Batches, batch_size
from selector.data.calibration import Calibration
from selector.data.forward import evaluating, float_tensors, probe_inputs, run_batch
from selector.data.loss import Loss
from selector.data.sampling import split_images
from selector.errors import SelectorError
from selector.learning.damage_curve import Curve, curve_of, rungs
from selector.network.folding import Prediction
from selector.network.groups import Group
from selector.oracle.oracle import Oracle
from selector.planning.allocation import Allocated, allocate_by_damage
from selector.planning.candidates import Criterion, Survey, Trial
from selector.planning.stage import Stage
from selector.records.decision import SET_ERRORS, SetKnowledge
from selector.repair.distillation.divergence import real_tensors
from selector.saliency.proposals.knowledge import measure_sets
from selector.typing import Channels

IMAGES = 32
"""Images that damage is measured on: differences between groups are large, and paired by image."""
FEWEST = 8
"""Images that are kept apart; where there are less than twice as many, all measure."""
MEMORY_BYTES = 2**30
"""What the products of groups that are measured together may take."""
PRODUCTS = 4
"""Matrices of a consumer's inputs that are held at once: products, and what is made of them."""
QUARTER = 0.25
"""Share of a group's channels at which its damage is measured."""
FLOOR = 1e-5
"""Damage, in nats, below which measurements and errors are alike."""
KFAC = SET_ERRORS.index("fisher_residual")


@dataclass(frozen=True)
class Measured:
    """What was measured of a network as it was surveyed."""

    curves: Mapping[str, Curve]
    """Group -> damage by the number of channels that go."""
    images: int
    """Images times networks that were evaluated."""


@dataclass(frozen=True)
class LeastMeasuredDamage:
    """Where the least damage is measured per unit of cost saved."""

    text = "allocation by measured damage"
    _known: WeakKeyDictionary[Survey, Measured] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )
    """Of the networks as they were surveyed: several steps may be tried with each."""

    def allocate(self, stage: Stage, trial: Trial, criterion: Criterion) -> Allocated:
        """Channels that every group loses now; see `allocate_by_damage`."""
        survey, images = trial.survey, 0
        if survey not in self._known:
            self._known[survey] = measured_curves(stage, trial, criterion)
            images = self._known[survey].images
        counts = allocate_by_damage(stage, self._known[survey].curves, wary=False)
        return Allocated(counts, self.text, images)


def measured_curves(stage: Stage, trial: Trial, criterion: Criterion) -> Measured:
    """Group -> damage by the number of channels that go.

    Nats times the square of the temperature for classifiers, shares of the variance for other
    outputs; nats of the loss where the network returns nothing but losses.

    Args:
        stage: Where the network stands.
        trial: The network, its scores and its images.
        criterion: Chooses the channels.
    """
    survey = trial.survey
    free = [stage.groups.prunable[name] for name in stage.free]
    steps = {group: rungs(stage.options(group.name), group.channels) for group in free}
    sets = _first_choices(criterion, survey, steps)
    known = _known_sets(trial, {group.name: group for group in free})
    shapes: dict[Group, list[float]] = {}
    tried: dict[Group, list[int]] = {}
    for group, counts in steps.items():
        shapes[group], tried[group] = [float(count) for count in counts], counts
        if known is not None and counts:
            named = {str(count): one for count, one in zip(counts, sets[group], strict=True)}
            shapes[group] = known[group.name].errors(named)[:, KFAC].tolist()
            tried[group] = [min(counts, key=lambda n: abs(n - QUARTER * group.channels))]
    asked = {g: [s for s in sets[g] if len(s) in tried[g]] for g in free if steps[g]}
    damages, images = _measured(trial, stage, asked)
    curves = {}
    for group, counts in steps.items():
        factors = [
            (damage + FLOOR) / (shapes[group][counts.index(n)] + FLOOR)
            for n, damage in zip(tried[group], damages.get(group, []), strict=True)
        ]
        scale = np.interp(counts, tried[group], factors) if counts else np.zeros(0)
        curves[group.name] = curve_of(counts, (scale * shapes[group]).tolist())
    return Measured(curves, images)


def _known_sets(trial: Trial, groups: Mapping[str, Group]) -> Mapping[str, SetKnowledge] | None:
    """What is known of the groups' sets; None where that cannot be had, as without gradients."""
    views = trial.survey.views
    found = {name: views[name].sets for name in groups if name in views}
    known = {name: sets for name, sets in found.items() if sets is not None}
    if len(known) == len(groups):
        return known
    with suppress(SelectorError):
        return measure_sets(trial.model, trial.survey.scoring, groups, ())
    return None


def _measured(
    trial: Trial, stage: Stage, sets: Mapping[Group, Sequence[Channels]]
) -> tuple[dict[Group, list[float]], int]:
    """The damage of some sets, in their order, and images times networks that this took."""
    model = trial.model
    images, others, comparable = _apart(model, trial.survey.scoring)
    damages: dict[Group, list[float]] = {}
    spent = 0
    for groups in _parts(list(sets)):
        prediction = Prediction.measured(model, others, groups)
        # The network is checked once.
        oracle = Oracle("repaired", prediction=prediction, batch_statistics=True, check=not damages)
        measured = oracle.measure(
            model,
            images,
            {group: sets[group] for group in groups},
            loss=_loss_of(images),
            reference=model if comparable else None,
            progress=trial.progress,
        )
        found = measured.divergences or measured.changes
        damages |= {group: [max(one.nats, 0.0) for one in found[group]] for group in groups}
        spent += measured.image_forwards
    return damages, spent


def _parts(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """The groups in as few parts as fit the memory: each part reads all images once."""
    part: list[Group] = []
    left = MEMORY_BYTES
    for group in groups:
        inputs = (len(one.indices) for one in group.slices if one.side == "in")
        needed = sum(PRODUCTS * 8 * count**2 for count in inputs)
        if part and needed > left:
            yield part
            part, left = [], MEMORY_BYTES
        part.append(group)
        left -= needed
    if part:
        yield part


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
