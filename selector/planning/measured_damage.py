"""Widths by measured damage: what single groups' losses do to the network's outputs.

Every group alone loses a share of its channels, as the criterion chooses them; what stays stands in
for what went, as repair will have it, and the divergence from the present outputs is read on a few
images that this was not fitted to: else wide groups would look cheap. Shares are those of a ladder,
and a higher one is measured only where the budget would reach it: since no step is taken to be
cheaper a channel than a smaller one, what is known of the smaller ones is a lower bound, and the
widths are those that all measurements would have led to. No labels are needed, and nothing that was
learnt from other networks.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from selector.data.batches import Batches, batch_size, rows
from selector.data.calibration import Calibration
from selector.data.forward import evaluating, float_tensors, probe_inputs, run_batch
from selector.data.loss import Loss
from selector.data.sampling import split_images
from selector.errors import SelectorError
from selector.learning.damage_curve import Curve, curve_of, rungs
from selector.network.batchnorm import LEAST_BATCH
from selector.network.costs import Costs
from selector.network.folding import DOUBLE, Prediction
from selector.network.groups import Group
from selector.oracle.oracle import Oracle
from selector.planning.allocation import Allocated, spend_by_damage
from selector.planning.candidates import Criterion, Survey, Trial
from selector.planning.stage import Stage
from selector.repair.distillation.divergence import real_tensors

VALUES_BYTES = 2**31
"""What the values of the images that are measured together may take."""
AROUND = 3
"""Values of each output of a layer that are kept: its own, normalised, and activated."""
IMAGES = 32
"""Images that damage is measured on: differences between groups are large, and paired by image."""
FEWEST = 8
"""Images that are kept apart; where there are less than twice as many, all measure."""
MEMORY_BYTES = 2**30
"""What the products of groups that are measured together may take."""
KEPT_BYTES = 2**31
"""What may be kept of all groups between two steps."""


@dataclass(frozen=True)
class LeastMeasuredDamage:
    """Where the least damage is measured per unit of cost saved."""

    text = "allocation by measured damage"
    _known: WeakKeyDictionary[Survey, "Ladder"] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )
    """Of the networks as they were surveyed: several steps may be tried with each."""

    def allocate(self, stage: Stage, trial: Trial, criterion: Criterion) -> Allocated:
        """Channels that every group loses now; see `allocate_by_damage`."""
        ladder = self._known.setdefault(trial.survey, Ladder())
        groups = [stage.groups.prunable[name] for name in stage.free]
        steps = {group: rungs(stage.options(group.name), group.channels) for group in groups}
        before = ladder.images
        wanted = ladder.missing(steps, {group.name: 1 for group in groups})
        while True:
            if wanted:
                ladder.climb(stage, trial, criterion, wanted)
            spent = spend_by_damage(stage, ladder.curves(steps), wary=False)
            wanted = ladder.missing(steps, spent.reached)
            if not wanted or trial.foretelling:
                return Allocated(spent.counts, self.text, ladder.images - before)


@dataclass(eq=False)
class Ladder:
    """The damage that has been measured of a network as it was surveyed.

    Nats times the square of the temperature for classifiers, shares of the variance for other
    outputs; nats of the loss where the network returns nothing but losses.
    """

    damages: dict[str, dict[int, float]] = field(default_factory=dict)
    """Group -> channels that go -> damage."""
    images: int = 0
    """Images times networks that were evaluated."""
    _images: "Apart | None" = None
    """Chosen once: each choice reads the first of the user's batches."""
    _prediction: Prediction | None = None
    """Of all groups, where that fits the memory."""

    def curves(self, steps: Mapping[Group, Sequence[int]]) -> dict[str, Curve]:
        """Damage by the number of channels; a lower bound where it was not measured.

        Args:
            steps: Group -> numbers of channels of its curve, ascending.
        """
        known = {group: self.damages.get(group.name, {}) for group in steps}
        return {
            group.name: curve_of(counts, [known[group].get(n, 0.0) for n in counts])
            for group, counts in steps.items()
        }

    def missing(
        self, steps: Mapping[Group, Sequence[int]], counts: Mapping[str, int]
    ) -> dict[Group, int]:
        """The lowest step of each group that is not measured, though these counts rely on it."""
        found = {}
        for group, some in steps.items():
            reached = bisect_left(some, counts[group.name]) + 1 if counts[group.name] else 0
            known = self.damages.get(group.name, {})
            unknown = [count for count in some[:reached] if count not in known]
            if unknown:
                found[group] = unknown[0]
        return found

    def climb(
        self, stage: Stage, trial: Trial, criterion: Criterion, counts: Mapping[Group, int]
    ) -> None:
        """Measure one step of each of some groups: one reading of some images.

        Args:
            stage: Where the network stands.
            trial: The network, its scores and its images.
            criterion: Chooses the channels.
            counts: Group -> channels that go.
        """
        model = trial.model
        removals = criterion.proposed(trial.survey, counts)
        if self._images is None:
            self._images = _apart(model, trial.survey.scoring, stage.groups.costs)
        images, others, comparable = self._images
        everything = [stage.groups.prunable[name] for name in stage.free]
        if self._prediction is None and sum(map(_kept_bytes, everything)) <= KEPT_BYTES:
            measured = (Prediction.measured(model, others, part) for part in _parts(everything))
            self._prediction = reduce(Prediction.joined, measured)
        for part in [list(counts)] if self._prediction else _parts(list(counts)):
            prediction = self._prediction or Prediction.measured(model, others, part)
            # The network is checked once.
            oracle = Oracle(
                "repaired", prediction=prediction, batch_statistics=True, check=not self.images
            )
            found = oracle.measure(
                model,
                images,
                {group: [removals[group]] for group in part},
                loss=_loss_of(images),
                reference=model if comparable else None,
                progress=trial.progress,
            )
            self.images += found.image_forwards
            for group, (change,) in (found.divergences or found.changes).items():
                damage = max(change.nats, 0.0)
                self.damages.setdefault(group.name, {})[counts[group]] = damage


def _parts(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """The groups in as few parts as fit the memory: each part reads all images once."""
    part: list[Group] = []
    left = MEMORY_BYTES
    for group in groups:
        needed = 8 * sum(count**2 for count in _inputs(group))
        if part and needed > left:
            yield part
            part, left = [], MEMORY_BYTES
        part.append(group)
        left -= needed
    if part:
        yield part


def _inputs(group: Group) -> Iterator[int]:
    """Inputs of each of its consumers that are the group's."""
    return (len(one.indices) for one in group.slices if one.side == "in")


def _kept_bytes(group: Group) -> int:
    """What a `Prediction` of the group takes."""
    return sum(count**2 * (8 if count <= DOUBLE else 4) for count in _inputs(group))


Apart = tuple[Calibration, Batches, bool]
"""Images that measure, and those that tell what stands in for what; and whether the network gives
outputs for them that can be compared."""


def _apart(model: nn.Module, scoring: Calibration, costs: Costs) -> Apart:
    """The images in two parts; all of them are both if need be."""
    first, others = split_images(scoring, IMAGES)
    if sum(batch_size(*batch) for batch in first) >= FEWEST:
        fitting = [part for batch in first for part in _fitting(batch, costs)]
        for batches in (fitting, first):
            images = Calibration(batches, scoring.loss)
            with suppress(SelectorError):  # It takes batches of one size.
                return images, others, _has_outputs(model, images)
    return scoring, scoring, _has_outputs(model, scoring)


def _fitting(batch: tuple[object, object], costs: Costs) -> list[tuple[object, object]]:
    """A batch in parts whose values fit the memory, or that are as small as statistics allow."""
    layers = (layer for layer in costs.layers.values() if layer.weights)
    values = sum(layer.outputs * layer.macs / layer.weights for layer in layers)
    images = batch_size(*batch)
    fit = max(1, int(VALUES_BYTES / max(4 * AROUND * values, 1.0)))
    parts = max(1, min(images // LEAST_BATCH, -(-images // fit)))
    ends = [images * number // parts for number in range(parts + 1)]
    return [
        (rows(batch[0], start, stop, images), rows(batch[1], start, stop, images))
        for start, stop in pairwise(ends)
    ]


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
