"""Labels of channels, laid out like the tensors that hold the channels.

A plane has the shape of its tensor and one label for each element; it is a strided view that takes
memory only for the dimensions along which labels vary. So whatever moves a tensor's elements moves
the labels in the same way: one runs the same operator on the plane.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FIXED = 0
"""The label of an element that belongs to no channel, and can therefore not be removed."""


@dataclass(frozen=True, eq=False)
class Value:
    """What is known of a tensor's channels."""

    planes: tuple[Tensor, ...] = ()
    """One plane for each direction in which the tensor has channels: a weight has two."""
    weight: bool = False
    """The tensor is computed from parameters alone."""
    adapts: bool = False
    """The tensor was made in the forward pass, of whatever shape was needed there."""


def vector(labels: Tensor, shape: Sequence[int], dimension: int) -> Tensor:
    """A plane of this shape whose labels vary along one dimension."""
    view = [1] * len(shape)
    view[dimension] = -1
    return labels.view(view).expand(*shape)


def varying(plane: Tensor) -> tuple[int, ...]:
    """The dimensions along which labels vary; none in an empty tensor."""
    if plane.numel() == 0:
        return ()
    strides = plane.stride()
    return tuple(d for d, size in enumerate(plane.shape) if size > 1 and strides[d] != 0)


def narrowed(plane: Tensor, keep: Sequence[int] | None = None) -> Tensor:
    """The plane with size one wherever labels are constant; `keep` names dimensions that stay."""
    wanted = varying(plane) if keep is None else keep
    for d in range(plane.ndim):
        if d not in wanted and plane.shape[d] > 1:
            plane = plane.narrow(d, 0, 1)
    return plane


def lines(plane: Tensor, dimension: int) -> Tensor:
    """Labels position by position along a dimension, shape (positions, labels at each)."""
    return narrowed(plane).movedim(dimension, 0).reshape(plane.shape[dimension], -1)


def compact(plane: Tensor) -> Tensor | None:
    """The same labels in as little memory as they need; None where none of them varies."""
    if plane.numel() == 0:
        return None
    shape = plane.shape
    for d in varying(plane):
        first = plane.narrow(d, 0, 1)
        if bool((narrowed(plane) == narrowed(first)).all()):
            plane = first.expand(shape)
    return plane if varying(plane) else None


def compacted(planes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Those planes in which labels vary."""
    found = (compact(plane) for plane in planes)
    return tuple(plane for plane in found if plane is not None)


def stretched(plane: Tensor, shape: Sequence[int]) -> Tensor:
    """A plane that is constant along the dimensions that get another size."""
    for d, size in enumerate(shape):
        if plane.shape[d] != size:
            plane = plane.narrow(d, 0, 1)
    return plane.expand(*shape)


def aligned(plane: Tensor, dimensions: int) -> Tensor:
    """A plane with leading dimensions of size one, as broadcasting adds them."""
    return plane[(None,) * (dimensions - plane.ndim)] if plane.ndim < dimensions else plane


def joined(planes: Sequence[Tensor], dimension: int) -> Tensor:
    """Planes one after the other; memory is taken for dimensions along which one of them varies."""
    keep = {dimension}.union(*(varying(plane) for plane in planes))
    shape = list(planes[0].shape)
    shape[dimension] = sum(plane.shape[dimension] for plane in planes)
    joint = torch.cat([narrowed(plane, sorted(keep)) for plane in planes], dimension)
    return joint.expand(*shape)
