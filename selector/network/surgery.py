"""Physical removal of channels from a network's layers."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from selector.errors import SelectorError
from selector.network.attention import is_packed_attention, run_narrow
from selector.network.bare import (
    bare_width,
    is_bare,
    is_number,
    kept_place,
    note_width,
    set_number,
    tensor_place,
)
from selector.network.coupling.ties import (
    Owner,
    cut_dimension,
    one_object,
    shared_parameters,
    tie_again,
)
from selector.network.groups import Group
from selector.network.layers import (
    CONVOLUTION,
    input_dimension,
    is_statistics_norm,
    layer_width,
    output_dimension,
    reading_weights,
    removable,
    same_in_every_group,
    weight_positions,
)
from selector.typing import ChannelSet, Side


@dataclass(frozen=True)
class Cut:
    """Positions removed from one side of one layer; a list of these replays a pruning."""

    layer: str
    side: Side
    indices: tuple[int, ...]


def cuts_of(removals: Iterable[tuple[Group, ChannelSet]]) -> tuple[Cut, ...]:
    """What has to be removed from every layer so that the channel sets of these groups are gone.

    Positions are those of the network as it is before any of the removals.
    """
    gone: dict[tuple[str, Side], set[int]] = defaultdict(set)
    for group, channel_set in removals:
        chosen = set(group.checked(channel_set))
        for part in group.slices:
            if kept_place(part.side):
                continue
            for index, channel in zip(part.indices, part.channels, strict=True):
                if channel in chosen:
                    gone[part.layer, part.side].add(index)
    return tuple(Cut(layer, side, tuple(sorted(gone[layer, side]))) for layer, side in gone)


def outputs_gone(cuts: Iterable[Cut]) -> dict[str, tuple[int, ...]]:
    """Layer -> the outputs that these cuts take from it."""
    return {cut.layer: cut.indices for cut in cuts if cut.side in ("out", "both")}


def apply_cuts(model: nn.Module, cuts: Iterable[Cut]) -> None:
    """Remove the positions physically, in place.

    Layers keep which parameters are trained, gradients of what is left, memory formats, and
    parameters that they share.

    Raises:
        SelectorError: A layer that is not there or cannot lose these positions; nothing is changed.
    """
    steps = [(_checked_layer(model, cut), cut) for cut in cuts]
    ties = [some for some in shared_parameters(model) if one_object(model, some)]
    for owners in ties:
        _check_tie(model, owners, [cut for _, cut in steps])
    for layer, cut in steps:
        _cut_layer(layer, cut.side, cut.indices)
        run_narrow(model.get_submodule(_around(cut.layer)))
    tie_again(model, ties)


def _around(layer: str) -> str:
    """The module that a layer belongs to: attention, for one, has to run otherwise after a cut."""
    return layer.rpartition(".")[0]


def _check_tie(model: nn.Module, owners: Sequence[Owner], cuts: Sequence[Cut]) -> None:
    lost: dict[Owner, set[tuple[int | None, tuple[int, ...]]]] = {owner: set() for owner in owners}
    for owner in owners:
        for cut in cuts:
            if cut.layer == owner.layer:
                dimension = cut_dimension(model.get_submodule(cut.layer), owner, cut.side)
                if dimension is not None:
                    lost[owner].add((dimension, cut.indices))
    if any(positions != lost[owners[0]] for positions in lost.values()):
        names = " and ".join(repr(str(owner)) for owner in owners)
        raise SelectorError(
            f"{names} share one parameter, and these cuts would take different positions from it"
        )


def _cut_layer(layer: nn.Module, side: Side, gone: Sequence[int]) -> None:
    if is_bare(side):
        _cut_bare(layer, side, gone)
        return
    width, lost = layer_width(layer, side), set(gone)
    kept = [index for index in range(width) if index not in lost]
    if side == "in":
        columns = weight_positions(layer, side, kept)
        if isinstance(layer, nn.RNNBase):
            # Changed in place with the weights: whoever puts those back needs the old list.
            layer._flat_weights = list(layer._flat_weights)
        for weight in reading_weights(layer):
            _keep(layer, weight, input_dimension(layer), columns)
    else:
        if isinstance(layer, CONVOLUTION | nn.Linear) and side == "out":
            _keep(layer, "weight", output_dimension(layer), weight_positions(layer, side, kept))
        else:
            for name in reading_weights(layer):
                _keep(layer, name, 0, kept)
        for name in ("bias", "in_proj_bias", "running_mean", "running_var"):
            _keep(layer, name, 0, kept)
    run_narrow(layer)
    for name in _width_names(layer, side):
        setattr(layer, name, len(kept))
    if is_statistics_norm(layer) and not isinstance(layer, nn.GroupNorm):
        cast(Any, layer).normalized_shape = (len(kept),)


def _cut_bare(module: nn.Module, side: Side, gone: Sequence[int]) -> None:
    width, lost = bare_width(module, side), set(gone)
    assert width is not None
    note_width(module, side, width - len(lost))
    if is_number(side):
        set_number(module, side, width - len(lost))
    if (place := tensor_place(side)) is None:
        return
    name, dimension = place
    _keep(module, name, dimension, [i for i in range(width) if i not in lost])
    run_narrow(module)
    if name == "weight" and isinstance(getattr(module, "normalized_shape", None), tuple):
        cast(Any, module).normalized_shape = tuple(getattr(module, name).shape)


def _width_names(layer: nn.Module, side: Side) -> tuple[str, ...]:
    """Attributes of a layer that count the positions of one side."""
    if isinstance(layer, CONVOLUTION):
        if side == "both":
            return "in_channels", "out_channels", "groups"
        return (f"{side}_channels",)
    if isinstance(layer, nn.Linear):
        return (f"{side}_features",)
    if isinstance(layer, nn.RNNBase):
        return ("input_size",)
    if is_packed_attention(layer):
        return ()
    if isinstance(layer, nn.GroupNorm):
        alike = layer.num_groups == layer.num_channels
        return ("num_channels", "num_groups") if alike else ("num_channels",)
    if is_statistics_norm(layer):
        return ()
    return ("num_parameters",) if isinstance(layer, nn.PReLU) else ("num_features",)


def _keep(layer: nn.Module, name: str, dimension: int, kept: Sequence[int]) -> None:
    """Keep some positions of a layer's parameter or buffer, if it has it."""
    value = getattr(layer, name, None)
    if not isinstance(value, Tensor):
        return
    if not isinstance(value, nn.Parameter):
        setattr(layer, name, _selected(value, dimension, kept))
        return
    parameter = nn.Parameter(_selected(value.detach(), dimension, kept), value.requires_grad)
    if value.grad is not None:
        parameter.grad = _selected(value.grad, dimension, kept)
    setattr(layer, name, parameter)


def _selected(values: Tensor, dimension: int, kept: Sequence[int]) -> Tensor:
    """Some positions of a tensor, in its memory format."""
    index = torch.tensor(kept, dtype=torch.long, device=values.device)
    found = values.index_select(dimension, index)
    for form in (torch.channels_last, torch.channels_last_3d):
        fits = values.ndim == (4 if form == torch.channels_last else 5)
        if fits and not values.is_contiguous() and values.is_contiguous(memory_format=form):
            return found.contiguous(memory_format=form)
    return found


def _checked_layer(model: nn.Module, cut: Cut) -> nn.Module:
    """The layer of a cut, once it is sure that it can lose these positions."""
    try:
        layer = model.get_submodule(cut.layer)
    except AttributeError:
        raise SelectorError(
            f"the network has no layer {cut.layer!r}; these cuts belong to another network"
        ) from None
    if not removable(layer, cut.side):
        raise SelectorError(
            f"layer {cut.layer!r} ({type(layer).__name__}) cannot lose its {cut.side!r} channels"
        )
    width = bare_width(layer, cut.side) if is_bare(cut.side) else layer_width(layer, cut.side)
    assert width is not None
    if cut.indices and not (min(cut.indices) >= 0 and max(cut.indices) < width):
        raise SelectorError(
            f"layer {cut.layer!r} has {width} {cut.side!r} positions, the cut names "
            f"{max(cut.indices)}; these cuts belong to another network"
        )
    if not is_bare(cut.side) and not same_in_every_group(layer, cut.side, cut.indices):
        raise SelectorError(
            f"the groups of layer {cut.layer!r} would not lose the same {cut.side!r} positions "
            "each; these cuts belong to another network"
        )
    return layer


@contextmanager
def temporarily_cut(
    model: nn.Module, removals: Sequence[tuple[Group, ChannelSet]]
) -> Iterator[None]:
    """Context in which channel sets are cut out physically; the layers get their tensors back.

    The layers stay the same objects, so that it does not matter under how many names, or from
    where, the network reaches them.
    """
    cuts = cuts_of(removals)
    names = dict.fromkeys(name for cut in cuts for name in (cut.layer, _around(cut.layer)))
    layers = [model.get_submodule(name) for name in names]
    kept = [
        (layer, dict(vars(layer)), dict(layer._parameters), dict(layer._buffers))
        for layer in layers
    ]
    try:
        apply_cuts(model, cuts)
        torch.clear_autocast_cache()
        yield
    finally:
        for layer, attributes, parameters, buffers in kept:
            _restore(vars(layer), attributes)
            _restore(layer._parameters, parameters)
            _restore(layer._buffers, buffers)
        torch.clear_autocast_cache()


def _restore(values: dict[str, Any], kept: Mapping[str, Any]) -> None:
    values.clear()
    values.update(kept)
