"""A network of the coverage benchmark as a value: how to build it, what it reads and returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.data.forward import float_tensors

Source = Literal["torchvision", "timm", "third_party", "dense", "video", "written"]
Batch = tuple[object, object]

IMAGES = 4
"""Images of a batch, unless a network is heavy."""
BATCHES = 2


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One network.

    Attributes:
        name: `SOURCE/NAME`.
        source: Where it comes from.
        family: Networks of one design; those of the required families are judged by their reach.
        build: Makes it with random weights, or with the published ones.
        shape: Of one input, without the batch.
        outputs: Layers that give the network's outputs, which Torch-Pruning must be told to keep;
            by default those as wide as `classes`.
        classes: Outputs of a classifier or of every pixel; None where it is neither.
        detector: Whether it reads a list of images and has losses of its own in training mode, as
            torchvision's detectors do.
        trained: Whether `build` gives trained weights.
        images: Images of a batch.
        statistics: Images for the BatchNorm statistics of random networks; None for a batch.
        real: Labelled images of its own data set: how many, from which on, in one batch.
    """

    name: str
    source: Source
    family: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    outputs: tuple[str, ...] = ()
    classes: int | None = 1000
    detector: bool = False
    trained: bool = False
    images: int = IMAGES
    statistics: int | None = None
    real: Callable[[int, int], tuple[Tensor, Tensor]] | None = None

    def inputs(self, count: int, seed: int) -> object:
        """Images of its data set, else noise, part of it coarse: pooling leaves that."""
        if self.real is not None:
            return self.real(count, IMAGES * (seed % 40))[0]
        generator = torch.Generator().manual_seed(seed)
        fine = torch.randn(count, *self.shape, generator=generator)
        coarse = torch.randn(
            count, self.shape[0], *([1] * (len(self.shape) - 1)), generator=generator
        )
        images = 0.8 * fine + 0.6 * coarse
        return [image.sigmoid() for image in images] if self.detector else images

    def batches(self, model: nn.Module) -> list[Batch]:
        """Batches with labels, else with the network's own predictions, so that its loss is low."""
        if self.real is not None:
            return [self.real(self.images, self.images * number) for number in range(BATCHES)]
        inputs = [self.inputs(self.images, seed) for seed in range(BATCHES)]
        if self.detector:
            return [(given, objects_in(given)) for given in inputs]
        return [(given, self._targets(model, given)) for given in inputs]

    @torch.no_grad()
    def _targets(self, model: nn.Module, inputs: object) -> Tensor:
        if self.classes is None:
            return torch.zeros(self.images, dtype=torch.long)
        outputs = first_tensor(model.eval()(inputs))
        return outputs.argmax(1)

    @property
    def loss(self) -> Callable[[object, Tensor], Tensor] | None:
        """The loss of `prune`.

        None for a plain classifier, whose is cross-entropy, and for a detector, which has its own.
        """
        if self.detector:
            return None
        if self.classes is None:
            return energy
        return entropy if self.source in ("dense", "written") else None

    @property
    def forward(self) -> Callable[[nn.Module, Batch], object] | None:
        """How `prune` runs a detector."""
        return detection_losses if self.detector else None


def detection_losses(model: nn.Module, batch: Batch) -> object:
    """The losses of a detector by name, which it has in training mode only."""
    return model.train()(*batch)


def objects_in(images: object) -> list[dict[str, Tensor]]:
    """One object an image, each at another place: what there is to find."""
    assert isinstance(images, list)
    found = []
    for number, image in enumerate(images):
        height, width = image.shape[1:]
        box = image.new_tensor([[0.1 * width, 0.1 * height, 0.7 * width, 0.8 * height]])
        mask = torch.ones(1, height, width, dtype=torch.uint8)
        found.append({"boxes": box + number, "labels": torch.tensor([1 + number]), "masks": mask})
    return found


def first_tensor(outputs: object) -> Tensor:
    """The first tensor of a network's outputs, the main one of segmentation and classification."""
    return float_tensors(outputs)[0]


def entropy(outputs: object, targets: Tensor) -> Tensor:
    """Cross-entropy of the main output; of every pixel, where it is a map."""
    return functional.cross_entropy(first_tensor(outputs), targets)


def energy(outputs: object, targets: object) -> Tensor:
    """Mean square of (output - 1) over all tensors of a network that is no classifier."""
    found = [(tensor - 1).square().mean() for tensor in float_tensors(outputs)]
    return torch.stack(found).mean()
