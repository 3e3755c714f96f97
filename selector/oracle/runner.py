"""The oracle's bench: candidates on an engine, batch after batch, within a budget of memory."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm import tqdm

from selector.data.batches import batch_size, rows
from selector.data.forward import call
from selector.data.loss import Objective, check_finite
from selector.errors import SelectorError
from selector.network.groups import Group
from selector.oracle.engines import Engine
from selector.oracle.fast_engine import Fast, same_outputs
from selector.oracle.masked_engine import Masked, Removal
from selector.oracle.racing import Rivals
from selector.typing import Channels


class Bench:
    """The candidates on the engine, batch after batch."""

    def __init__(
        self,
        model: nn.Module,
        engine: Engine,
        objective: Objective,
        rivals: Rivals,
        removals: Mapping[tuple[Group, Channels], Removal],
        *,
        memory_bytes: int,
        check: bool,
        progress: bool,
    ) -> None:
        self._model, self._engine, self._objective = model, engine, objective
        self._rivals, self._removals = rivals, removals
        self._memory_bytes, self._check, self._progress = memory_bytes, check, progress
        self.images = self.image_forwards = 0

    def measure_batch(self, inputs: object, targets: object, number: int) -> None:
        """All candidates that are left, on one batch; in parts where it would not fit."""
        if number == 0 and self._check:
            outputs = check_deterministic(self._model, inputs)
            few = min(2, batch_size(inputs))
            if isinstance(self._engine, Fast) and not same_outputs(
                self._engine.load(rows(inputs, 0, few)), rows(outputs, 0, few)
            ):
                # A trace of a network that has been changed since.
                self._engine = Masked(self._model)
        found: dict[tuple[Group, Channels], list[Tensor]] = {}
        left = self._rivals.left()
        for some, wanted in self._parts(inputs, targets):
            before = self._losses(self._engine.load(some), wanted, number)
            groups = tqdm(
                left.items(), f"oracle, batch {number}", disable=not self._progress, leave=False
            )
            for group, sets in groups:
                asked = [self._removals[group, channels] for channels in sets]
                outputs = self._engine.outputs(group, asked)
                for channels, output in zip(sets, outputs, strict=True):
                    after = self._losses(output, wanted, number)
                    found.setdefault((group, channels), []).append((after - before).cpu())
        # Only whole batches count, so that all candidates have seen the same images.
        for (group, channels), differences in found.items():
            self._rivals.add(group, channels, torch.cat(differences))
        self.images += batch_size(inputs)
        self.image_forwards += batch_size(inputs) * (1 + sum(map(len, left.values())))
        self._rivals.finish_batch()

    def _losses(self, outputs: object, targets: object, number: int) -> Tensor:
        losses = self._objective.each(outputs, targets)
        check_finite(losses, number)
        return losses

    def _parts(self, inputs: object, targets: object) -> Iterator[tuple[object, object]]:
        images = batch_size(inputs)
        size = _images_that_fit(self._engine, inputs, self._memory_bytes)
        if size >= images:
            yield inputs, targets
            return
        for start in range(0, images, size):
            yield rows(inputs, start, start + size), rows(targets, start, start + size)


def _images_that_fit(engine: Engine, inputs: object, memory_bytes: int) -> int:
    images = batch_size(inputs)
    if not isinstance(engine, Fast):
        return images
    tried = min(2, images)
    engine.load(rows(inputs, 0, tried))
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
    first, again = (pytree.tree_leaves(found) for found in (outputs, call(model, inputs)))
    for one, other in zip(first, again, strict=True):
        if isinstance(one, Tensor) and one.numel() and one.is_floating_point():
            gap = float((one.double() - other.double()).abs().nan_to_num().max())
            if gap > 1e-5 * float(one.double().abs().nan_to_num().max()):
                raise SelectorError(
                    "the network gives other outputs for the same images: look for dropout that "
                    "stays on in evaluation mode (functional dropout without training=), noise, or "
                    "sampling in its forward pass"
                )
    return outputs
