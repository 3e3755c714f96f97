"""Random changes of images that leave what they show as it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from selector.data.batches import batch_size
from selector.errors import SelectorError

Augment = Callable[[object], object]
"""`augment(inputs) -> inputs` for one batch: the tensor that the network is called with, or the
tuple or mapping of them; chance comes from torch's global generators, which are seeded for it."""

SHIFT = 8
"""Images are shifted by at most this part of their side: 4 pixels of 32."""


def shifted(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Shift every image by up to an eighth of its side in each direction.

    The border is filled with the reflected image: trained networks know no black frames.

    Args:
        images: Shape (images, channels, height, width).
        generator: A generator on the CPU.

    Returns:
        The same shape.
    """
    count, _, height, width = images.shape
    down, right = height // SHIFT, width // SHIFT
    if not down and not right:
        return images
    padded = functional.pad(images, (right, right, down, down), mode="reflect")
    tops = torch.randint(2 * down + 1, (count, 1), generator=generator)
    lefts = torch.randint(2 * right + 1, (count, 1), generator=generator)
    rows = (tops + torch.arange(height)).to(images.device)
    columns = (lefts + torch.arange(width)).to(images.device)
    each = torch.arange(count, device=images.device)[:, None, None]
    # Indices around a slice put the channels last.
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def mirrored(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Mirror about half of the images, left to right; shape (images, channels, height, width)."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class Augmentation:
    """What is done to every batch of images before both networks see it."""

    shift: bool
    mirror: bool
    custom: Augment | None = None

    @classmethod
    def of(
        cls, augment: Literal["shift"] | Augment | None, mirror: bool, inputs: object
    ) -> "Augmentation":
        """What a caller asked for, given the inputs that it is for.

        Shifts are for image tensors alone: on other inputs, the default does nothing.

        Raises:
            SelectorError: An unknown name, or mirroring of something that is no image tensor.
        """
        if not (augment is None or augment == "shift" or callable(augment)):
            raise SelectorError(
                f"augment={augment!r} is unknown; pass 'shift', None, or a function of the inputs"
            )
        if mirror and not is_image_batch(inputs):
            raise SelectorError(
                "mirror=True needs a float tensor of shape (images, channels, height, width) as "
                "the only input; pass augment=your_function, which may mirror what it likes"
            )
        custom = augment if callable(augment) else None
        return cls(augment == "shift" and is_image_batch(inputs), mirror, custom)

    @property
    def changes(self) -> bool:
        """Whether anything is done at all."""
        return self.shift or self.mirror or self.custom is not None

    def __str__(self) -> str:
        names = [
            getattr(self.custom, "__name__", type(self.custom).__name__) if self.custom else "",
            "shifts" if self.shift else "",
            "mirroring" if self.mirror else "",
        ]
        return ", ".join(filter(None, names)) or "none"

    def __call__(self, inputs: object, seed: int) -> object:
        """Augment one batch; the same seed gives the same result.

        Raises:
            SelectorError: The caller's function failed, or returned another number of images.
        """
        changed = self._customised(inputs, seed) if self.custom else inputs
        generator = torch.Generator().manual_seed(seed)
        if isinstance(changed, Tensor) and self.shift:
            changed = shifted(changed, generator=generator)
        if isinstance(changed, Tensor) and self.mirror:
            changed = mirrored(changed, generator=generator)
        return changed

    def _customised(self, inputs: object, seed: int) -> object:
        assert self.custom is not None
        with seeded(seed, inputs):
            try:
                # A copy: a function that works in place must not change the images for good.
                changed = self.custom(pytree.tree_map(_copy, inputs))
                count, before = batch_size(changed), batch_size(inputs)
            except Exception as error:
                raise SelectorError(
                    f"augment failed on a batch ({type(error).__name__}: {error}); it is called "
                    "with the network's inputs and must return the same structure"
                ) from error
        if count != before:
            raise SelectorError(
                f"augment returned {count} images for {before}; it must keep their number"
            )
        return changed


@contextmanager
def seeded(seed: int, inputs: object) -> Iterator[None]:
    """Context in which torch's global generators are seeded; their states come back afterwards."""
    kinds = {t.device.type for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)} - {"cpu"}
    if not kinds:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed accelerators that are not forked here.
            torch.default_generator.manual_seed(seed)
            yield
        return
    kind = kinds.pop()
    count = getattr(torch, kind).device_count()
    with torch.random.fork_rng(devices=range(count), device_type=kind):
        torch.manual_seed(seed)
        yield


def is_image_batch(inputs: object) -> bool:
    """Whether the inputs are one float tensor of shape (images, channels, height, width)."""
    return isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point()


def _copy(leaf: object) -> object:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
