"""Images without labels, kept in memory row by row, and which of them are held out."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from selector.data.batches import batch_size, one_an_image
from selector.data.forward import to_device
from selector.errors import SelectorError

FEWEST = 10
HELD_OUT = 5
"""One image of so many is never trained on."""

Unlabelled = Iterable[object]
"""Batches of inputs, or of (inputs, targets), whose targets are ignored. Inputs are a tensor, a
tuple of three or more tensors, or a mapping by name: what the network is called with."""


@dataclass(frozen=True, eq=False)
class Images:
    """All images of a user's batches, on the device of the network."""

    inputs: object
    """The structure that the network is called with; every tensor has all rows."""
    count: int

    @classmethod
    def read(cls, batches: Unlabelled, device: torch.device) -> "Images":
        """Read the batches once and put their rows together.

        Raises:
            SelectorError: Not iterable, fewer than ten images, or batches that do not fit together.
        """
        try:
            parts = [inputs_alone(batch) for batch in batches]
        except TypeError as error:
            raise SelectorError(
                f"images cannot be read ({error}); pass a DataLoader or a list of batches"
            ) from error
        count = sum(batch_size(part) for part in parts)
        if count < FEWEST:
            raise SelectorError(
                f"distillation needs at least {FEWEST} images, not {count}: a fifth of them is "
                "held out; pass more images"
            )
        return cls(to_device(_joined(parts), device), count)

    def rows(self, numbers: Tensor) -> object:
        """The inputs of some images, by number."""

        def take(leaf: object) -> object:
            if isinstance(leaf, Tensor) and leaf.ndim:
                return leaf[numbers.to(leaf.device)]
            return leaf

        taken: object = pytree.tree_map(take, self.inputs)
        return taken

    def split(self, seed: int) -> tuple[Tensor, Tensor]:
        """Numbers of the images to train on, and of the fifth that is held out."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.count, generator=generator)
        held = self.count // HELD_OUT
        return order[held:].sort().values, order[:held].sort().values

    def fingerprint(self) -> str:
        """A hash of all tensors; other images have another one."""
        return fingerprint(pytree.tree_leaves(self.inputs))


def fingerprint(leaves: Iterable[object]) -> str:
    """A hash of the values of tensors, and of whatever else is among them."""
    digest = hashlib.sha256()
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            tensor = leaf.detach().cpu().contiguous()
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


def inputs_alone(batch: object) -> object:
    """The inputs of a batch: of a pair, the first.

    Raises:
        SelectorError: They hold a list of images, whose rows cannot be put together.
    """
    inputs = _without_targets(batch)
    targets = batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else None
    if _lists_images(inputs, batch_size(inputs, targets)):
        raise SelectorError(
            "the batches hold lists of images, and distillation keeps all images in one tensor; "
            "stack images of one size, or leave distillation out"
        )
    return inputs


def _lists_images(values: object, images: int) -> bool:
    if isinstance(values, Mapping):
        return any(_lists_images(value, images) for value in values.values())
    if isinstance(values, tuple | list):
        several = images > 1 and one_an_image(values, images)
        return several or any(_lists_images(value, images) for value in values)
    return False


def _without_targets(batch: object) -> object:
    if isinstance(batch, tuple | list):
        if len(batch) in (1, 2):
            only: object = batch[0]
            return only
        return tuple(batch)
    # A mapping's own class may not be known to pytree.
    return dict(batch) if isinstance(batch, Mapping) else batch


def _joined(parts: list[object]) -> object:
    flat = [pytree.tree_flatten(part) for part in parts]
    structure = flat[0][1]
    for number, (_, other) in enumerate(flat):
        if other != structure:
            raise SelectorError(f"batch {number} has another structure than the first batch")
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    joined: object = pytree.tree_unflatten([_column(list(leaves)) for leaves in columns], structure)
    return joined


def _column(leaves: list[object]) -> object:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
    if len(tensors) < len(leaves):
        return leaves[0]
    try:
        return torch.cat(tensors)
    except RuntimeError as error:
        raise SelectorError(
            f"the batches do not fit together ({error}); bring all inputs to one shape and type"
        ) from error
