"""What a distillation works on: the unpruned network, the images, and the distance to it."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from selector.data.forward import device_of, evaluating, run_batch, to_device
from selector.errors import SelectorError
from selector.network.copying import copy_of
from selector.network.surgery import Cut
from selector.repair.distillation.augmentation import Augmentation
from selector.repair.distillation.divergence import Divergence, check_same_shapes, real_tensors
from selector.repair.distillation.layer_imitation import (
    LayerImitation,
    Tapped,
    imitated_layers,
    measured_variances,
    tapping,
)
from selector.repair.distillation.unlabelled import Images, inputs_alone

BATCH = 32
"""Images in a step. On the trial's networks 32 were better than 128 in the same time."""
PASSES_OF_VIEW = 2
_FOREVER = 1 << 30
_READ_AT_ONCE = 128
_SAME = 1e-3
"""Two readings of the same images may differ by this much of the largest output: accelerators do
not add in a fixed order."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Some images, augmented, and what the unpruned network makes of them."""

    inputs: object
    outputs: object
    layers: Tapped


@dataclass(frozen=True, eq=False)
class Task:
    """Everything that stays the same while the pruned network is trained."""

    teacher: nn.Module
    images: Images
    training: Tensor
    """Numbers of the images to train on."""
    held_out: tuple[Sample, ...]
    """Never trained on, never augmented."""
    divergence: Divergence
    augmentation: Augmentation
    seed: int
    layers: LayerImitation | None = None
    _kept: dict[tuple[int, int], Sample] = field(default_factory=dict)
    """The present view's batches, by view and place."""

    @property
    def batch_size(self) -> int:
        """Images in a step."""
        return min(BATCH, len(self.training))

    @property
    def steps_in_pass(self) -> int:
        """Steps that a pass over the images takes; what is left of the last batch is left out."""
        return len(self.training) // self.batch_size

    def sample(self, step: int) -> Sample:
        """The images of a step, drawn by the seed and the number of the step alone.

        An augmented view of all images is used for several passes, its batches in another order
        each time: the unpruned network, the slower of the two, runs in the first of them only.
        """
        number, place = divmod(step, self.steps_in_pass)
        view, again = divmod(number, self.passes_of_view)
        if again:
            place = int(self._order(3, number, self.steps_in_pass)[place])
        if (view, place) not in self._kept:
            if any(key[0] != view for key in self._kept):
                self._kept.clear()
            self._kept[view, place] = self._seen(view, place)
        # With layers' outputs, a view would fill the memory.
        return self._kept.pop((view, place)) if self.layers else self._kept[view, place]

    @property
    def passes_of_view(self) -> int:
        """How many passes the images stay as they are augmented."""
        return PASSES_OF_VIEW if self.augmentation.changes else _FOREVER

    def _seen(self, view: int, place: int) -> Sample:
        order = self._order(1, view, len(self.training))
        rows = self.training[order[place * self.batch_size :][: self.batch_size]]
        seed = chance(self.seed, 2, view * self.steps_in_pass + place)
        inputs = self.augmentation(self.images.rows(rows), seed)
        return seen_by(self.teacher, inputs, place, self.layers)

    def _order(self, purpose: int, number: int, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(chance(self.seed, purpose, number))
        return torch.randperm(count, generator=generator)

    def loss(self, student: nn.Module, sample: Sample) -> Tensor:
        """What a step lowers: the divergence, and the layers' error if that was asked for."""
        names = self.layers.kept if self.layers else ()
        with tapping(student, names) as ours:
            outputs = run_batch(student, sample.inputs, 0)
        value = self.divergence(outputs, sample.outputs)
        return value + self.layers(ours, sample.layers) if self.layers else value

    @torch.no_grad()
    def reading(self, student: nn.Module) -> float:
        """Divergence on the held-out images, mean over images."""
        total = images = 0.0
        with evaluating(student):
            for sample in self.held_out:
                count = len(real_tensors(sample.outputs)[0])
                outputs = run_batch(student, sample.inputs, 0)
                total += float(self.divergence(outputs, sample.outputs)) * count
                images += count
        return total / images


def make_task(
    original: nn.Module,
    pruned: nn.Module,
    images: Images,
    augmentation: Augmentation,
    cuts: Iterable[Cut] | None,
    seed: int,
) -> Task:
    """Hold images out and read the unpruned network's outputs on them.

    Args:
        original: The unpruned network; a copy is used.
        pruned: The network that is to imitate it.
        images: All images.
        augmentation: What is done to the images of each step.
        cuts: What was cut from the layers whose outputs are imitated as well; None for the
            network's outputs alone.
        seed: Draws the held-out images, the order and the augmentation.

    Raises:
        SelectorError: The networks do not fit together, or the original is not deterministic.
    """
    teacher = copy_of(original).to(device_of(pruned)).eval()
    training, held = images.split(seed)
    parts = [images.rows(rows) for rows in torch.split(held, _READ_AT_ONCE)]
    seen = tuple(seen_by(teacher, part, number) for number, part in enumerate(parts))
    _check_deterministic(teacher, seen[0])
    # The variance of other outputs is taken over the images of one reading.
    divergence = Divergence.measured(seen[0].outputs)
    with torch.no_grad(), evaluating(pruned):
        check_same_shapes(run_batch(pruned, seen[0].inputs, 0), seen[0].outputs)
    task = Task(teacher, images, training, seen, divergence, augmentation, seed)
    if cuts is None:
        return task
    return replace(task, layers=_layer_imitation(task, pruned, cuts))


def check_imitable(model: nn.Module, batch: object) -> None:
    """Refuse a network or a batch that distillation can do nothing with, before anything is done.

    Args:
        model: The unpruned network.
        batch: The first batch of images, as `distil` reads them.

    Raises:
        SelectorError: Lists of images, or outputs that cannot be imitated.
    """
    inputs = to_device(inputs_alone(batch), device_of(model))
    with evaluating(model):
        Divergence.measured(seen_by(model, inputs, 0).outputs)


def seen_by(
    teacher: nn.Module, inputs: object, number: int, layers: LayerImitation | None = None
) -> Sample:
    """Run the unpruned network on some inputs."""
    with torch.no_grad(), tapping(teacher, layers.kept if layers else ()) as tapped:
        return Sample(inputs, run_batch(teacher, inputs, number), tapped)


def chance(seed: int, purpose: int, number: int) -> int:
    """A seed for one purpose and one step, so that no state of a generator need be kept."""
    return int(np.random.SeedSequence((seed, purpose, number)).generate_state(1, np.uint32)[0])


def _check_deterministic(teacher: nn.Module, first: Sample) -> None:
    again = seen_by(teacher, first.inputs, 0)
    pairs = zip(real_tensors(first.outputs), real_tensors(again.outputs), strict=True)
    for one, other in pairs:
        if float((one - other).abs().max()) > _SAME * float(one.abs().max()):
            raise SelectorError(
                "the unpruned network gives other outputs when it reads the same images again; "
                "distillation needs a network without chance in evaluation mode"
            )


@torch.no_grad()
def _layer_imitation(task: Task, pruned: nn.Module, cuts: Iterable[Cut]) -> LayerImitation:
    kept = imitated_layers(task.teacher, pruned, cuts)
    inputs = task.held_out[0].inputs
    plain = LayerImitation(kept, dict.fromkeys(kept, 1.0))
    theirs = seen_by(task.teacher, inputs, 0, plain)
    relative = replace(plain, variances=measured_variances(kept, theirs.layers))
    with evaluating(pruned), tapping(pruned, kept) as ours:
        outputs = run_batch(pruned, inputs, 0)
    error = float(relative(ours, theirs.layers))
    divergence = float(task.divergence(outputs, theirs.outputs))
    return replace(relative, weight=divergence / error if error > 0 else 1.0)
