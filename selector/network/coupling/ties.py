"""Parameters that several layers share, and the groups that would tear them apart."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from selector.network.bare import is_bare, tensor_place
from selector.network.groups import Group, Slice
from selector.network.layers import input_dimension, is_depthwise, output_dimension
from selector.typing import Side


@dataclass(frozen=True)
class Owner:
    """A layer that holds a shared parameter, and the name under which it does."""

    layer: str
    attribute: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.attribute}" if self.layer else self.attribute


def shared_parameters(model: nn.Module) -> list[tuple[Owner, ...]]:
    """Parameters with more than one owner; each with all of them, in the network's order.

    Parameters are the same when they are one object or begin at one address. A layer that can be
    reached under two names is one owner.
    """
    owners: dict[object, list[Owner]] = defaultdict(list)
    for name, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                owners[_identity(parameter)].append(Owner(name, attribute))
    return [tuple(some) for some in owners.values() if len(some) > 1]


def one_object(model: nn.Module, owners: Iterable[Owner]) -> bool:
    """Whether the owners hold one parameter, not several at one address."""
    return len({id(_parameter(model, owner)) for owner in owners}) == 1


def _identity(parameter: Tensor) -> object:
    if parameter.numel() == 0 or parameter.is_meta:
        return id(parameter)
    return parameter.device, parameter.data_ptr()


def torn_ties(model: nn.Module, groups: Iterable[Group]) -> dict[str, str]:
    """Group -> why its removal would cut one owner of a shared parameter and not the others."""
    reasons: dict[str, str] = {}
    ties = shared_parameters(model)
    for group in groups:
        for owners in ties:
            if group.name not in reasons and _tears(model, group, owners):
                names = " and ".join(map(repr, map(str, owners)))
                reasons[group.name] = (
                    f"{names} share one parameter, and these channels would leave only some of "
                    "them: tied weights must stay tied"
                )
    return reasons


def _tears(model: nn.Module, group: Group, owners: Sequence[Owner]) -> bool:
    """Whether a group takes positions from a shared tensor that are not the same for all owners."""
    touched: dict[int, dict[Owner, frozenset[tuple[int, int]]]] = defaultdict(dict)
    for part in group.slices:
        for owner in owners:
            if owner.layer == part.layer:
                dimension = cut_dimension(model.get_submodule(part.layer), owner, part.side)
                if dimension is not None:
                    touched[dimension][owner] = _places(part)
    same = one_object(model, owners)
    return any(
        not same or len(found) < len(owners) or len(set(found.values())) > 1
        for found in touched.values()
    )


def _places(part: Slice) -> frozenset[tuple[int, int]]:
    return frozenset(zip(part.indices, part.channels, strict=True))


def cut_dimension(layer: nn.Module, owner: Owner, side: Side) -> int | None:
    """The dimension of an owner's tensor that loses positions with a side of its layer."""
    if is_bare(side):
        place = tensor_place(side)
        return place[1] if place is not None and place[0] == owner.attribute else None
    if owner.attribute.endswith("bias"):
        return None if side == "in" else 0
    if side == "both" or is_depthwise(layer):
        return 0
    return input_dimension(layer) if side == "in" else output_dimension(layer)


def tie_again(model: nn.Module, ties: Iterable[Sequence[Owner]]) -> None:
    """Give all owners of each parameter the first one's, after a cut has made copies of it."""
    for first, *others in ties:
        shared = _parameter(model, first)
        for owner in others:
            if _parameter(model, owner).shape == shared.shape:
                model.get_submodule(owner.layer)._parameters[owner.attribute] = shared


def _parameter(model: nn.Module, owner: Owner) -> nn.Parameter:
    parameter = model.get_submodule(owner.layer)._parameters[owner.attribute]
    assert parameter is not None
    return parameter
