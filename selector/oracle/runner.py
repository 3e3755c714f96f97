"""Candidates on an engine, batch after batch, within a budget of memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from selector.data.batches import batch_size, rows
from selector.data.forward import call
from selector.data.loss import LossChange, Objective, check_finite, summary
from selector.errors import SelectorError
from selector.network.coupling.law import exact, largest
from selector.network.groups import Group
from selector.oracle.engines import Engine
from selector.oracle.fast_engine import Fast, same_outputs
from selector.oracle.masked_engine import Masked, Removal
from selector.oracle.racing import Race
from selector.repair.distillation.divergence import Divergence
from selector.typing import Channels

TEMPERATURE = 2.0
"""What logits are divided by before outputs are compared."""


class UnitChangedError(Exception):
    """A batch has shown that the loss is measured by batch: what was measured does not fit."""


@dataclass(frozen=True, eq=False)
class Reading:
    """How batches are read."""

    memory_bytes: int
    """What the fast engine may keep; larger batches go in parts."""
    check: bool
    """Make sure that the network is deterministic and that its trace holds."""
    progress: bool
    whole: bool = False
    """Never take a batch apart: its images see each other."""
    reference: nn.Module | None = None
    """The network whose outputs the divergences are from."""


class Runner:
    """The candidates on the engine, batch after batch."""

    def __init__(
        self,
        model: nn.Module,
        engine: Engine,
        objective: Objective,
        race: Race,
        removals: Mapping[tuple[Group, Channels], Removal],
        *,
        reading: Reading,
    ) -> None:
        self._model, self._engine, self._objective = model, engine, objective
        self._race, self._removals, self._reading = race, removals, reading
        self.images = self.image_forwards = 0
        self._sizes: list[int] = []
        self._whole = reading.whole
        self._divergence: Divergence | None = None
        self._further: dict[tuple[Group, Channels], list[Tensor]] = {}

    def start_over(self) -> None:
        """Forget what was measured, to measure it batch by batch."""
        self.images = self.image_forwards = 0
        self._sizes, self._further = [], {}
        self._race.start_over()

    def change(self, group: Group, channels: Channels) -> LossChange:
        """What was measured of a candidate."""
        differences = self._race.differences(group, channels)
        sizes = torch.tensor(self._sizes[: len(differences)])
        by_batch = self._objective.unit == "batch"
        return summary(differences, self.images, sizes if by_batch else None)

    def divergence(self, group: Group, channels: Channels) -> LossChange:
        """How much further a candidate's outputs are from the reference's."""
        found = self._further.get((group, channels))
        return summary(torch.cat(found) if found else torch.zeros(0), self.images)

    def change_so_far(self, group: Group, channels: Channels) -> LossChange | None:
        """What was measured of a candidate; None where that has no standard error yet."""
        measured = len(self._race.differences(group, channels)) > 1
        return self.change(group, channels) if measured else None

    def measure_batch(self, inputs: object, targets: object, number: int) -> None:
        """All candidates that are left, on one batch; in parts where it would not fit.

        Raises:
            UnitChangedError: The loss is measured batch by batch from here on; see `start_over`.
        """
        images = batch_size(inputs, targets)
        outputs: object = None
        if number == 0 and self._reading.check:
            outputs = check_deterministic(self._model, inputs)
            self._engine = self._checked_engine(inputs, outputs, images)
        self._look_at_loss(inputs, targets, outputs, number)
        found: dict[tuple[Group, Channels], list[Tensor]] = {}
        further: dict[tuple[Group, Channels], list[Tensor]] = {}
        left = self._race.left()
        for some, wanted in self._parts(inputs, targets):
            whole, theirs = self._engine.load(some), self._theirs(some)
            before, apart = self._losses(whole, wanted, number), self._apart(whole, theirs)
            groups = tqdm(
                left.items(),
                f"oracle, batch {number}",
                disable=not self._reading.progress,
                leave=False,
            )
            for group, sets in groups:
                asked = [self._removals[group, channels] for channels in sets]
                outputs = self._engine.outputs(group, asked)
                for channels, output in zip(sets, outputs, strict=True):
                    after = self._losses(output, wanted, number)
                    found.setdefault((group, channels), []).append((after - before).cpu())
                    if apart is not None and (now := self._apart(output, theirs)) is not None:
                        further.setdefault((group, channels), []).append((now - apart).cpu())
        # Only whole batches count, so that all candidates have seen the same images.
        for (group, channels), differences in found.items():
            self._race.add(group, channels, torch.cat(differences))
        for candidate, gaps in further.items():
            self._further.setdefault(candidate, []).extend(gaps)
        self.images += images
        self._sizes.append(images)
        self.image_forwards += images * (1 + sum(map(len, left.values())))
        self._race.finish_batch()

    def _theirs(self, inputs: object) -> object:
        """The outputs of the reference network, if there is one."""
        reference = self._reading.reference
        if reference is None:
            return None
        outputs = call(reference, inputs)
        if self._divergence is None:
            self._divergence = Divergence.measured(outputs, TEMPERATURE)
        return outputs

    def _apart(self, outputs: object, theirs: object) -> Tensor | None:
        """How far every image's outputs are from the reference's, float64."""
        if self._divergence is None:
            return None
        return self._divergence.each(outputs, theirs).double()

    def _losses(self, outputs: object, targets: object, number: int) -> Tensor:
        unit = self._objective.unit
        losses = self._objective.each(outputs, targets)
        if self._objective.unit != unit:
            raise UnitChangedError
        check_finite(losses, number)
        return losses

    def _look_at_loss(self, inputs: object, targets: object, outputs: object, number: int) -> None:
        """Find out the loss's unit on the whole batch, before it is read in parts."""
        if self._objective.loss is None or self._objective.unit == "batch":
            return
        whole = call(self._model, inputs) if outputs is None else outputs
        by_batch = self._objective.measured(whole, targets)[0] is None
        if by_batch and number:
            raise UnitChangedError

    def _checked_engine(self, inputs: object, outputs: object, images: int) -> Engine:
        """The engine if its trace holds: for a few images, or at least for the whole batch."""
        if not isinstance(self._engine, Fast):
            return self._engine
        few = min(2, images)
        if not self._whole and _gives(
            self._engine, rows(inputs, 0, few, images), rows(outputs, 0, few, images)
        ):
            return self._engine
        # A fixed batch size, or inputs that do not come one an image.
        self._whole = True
        # Or a trace of a network that has been changed since.
        return self._engine if _gives(self._engine, inputs, outputs) else Masked(self._model)

    def _parts(self, inputs: object, targets: object) -> Iterator[tuple[object, object]]:
        images = batch_size(inputs, targets)
        if self._whole or self._objective.unit == "batch":
            yield inputs, targets
            return
        size = _images_that_fit(self._engine, inputs, images, self._reading.memory_bytes)
        if size >= images:
            yield inputs, targets
            return
        for start in range(0, images, size):
            stop = start + size
            yield rows(inputs, start, stop, images), rows(targets, start, stop, images)


def _gives(engine: Fast, inputs: object, outputs: object) -> bool:
    """Whether the engine gives these outputs."""
    try:
        return same_outputs(engine.load(inputs), outputs)
    except Exception:
        return False  # Whatever a wrong trace leads to, the network itself is right.


def _images_that_fit(engine: Engine, inputs: object, images: int, memory_bytes: int) -> int:
    if not isinstance(engine, Fast):
        return images
    tried = min(2, images)
    try:
        engine.load(rows(inputs, 0, tried, images))
    except Exception:  # A fixed batch size; whatever else it is, the whole batch will say.
        return images
    # What is kept of the whole network, and as much again for every candidate that runs with it.
    per_image = engine.bytes_kept() * (1 + engine.together) / tried
    fitting = max(1, int(memory_bytes / per_image))
    in_cache = engine.images_in_cache(tried)
    return fitting if in_cache is None else min(fitting, in_cache)


def check_deterministic(model: nn.Module, inputs: object) -> object:
    """Make sure that the network gives the same outputs for the same images, and return them.

    Raises:
        SelectorError: It does not.
    """
    outputs = call(model, inputs)
    again = call(model, inputs)
    for one, other in zip(exact(outputs), exact(again), strict=True):
        if largest([(one - other).nan_to_num()]) > 1e-5 * largest([one.nan_to_num()]):
            raise SelectorError(
                "the network gives other outputs for the same images: look for dropout that stays "
                "on in evaluation mode (functional dropout without training=), noise, or sampling "
                "in its forward pass"
            )
    return outputs
