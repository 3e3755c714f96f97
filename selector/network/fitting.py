"""Cuts that give a freshly built network the widths of a file, whichever channels they take."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from selector.errors import SelectorError
from selector.network.attention import is_packed_attention
from selector.network.bare import bare_width
from selector.network.layers import (
    CONVOLUTION,
    INSTANCE_NORMALISATION,
    NORMALISATION,
    input_dimension,
    is_depthwise,
    is_statistics_norm,
    layer_width,
    output_dimension,
    positions_per_group,
    shared_side,
)
from selector.network.surgery import Cut
from selector.typing import Side


def cuts_to_fit(
    model: nn.Module, tensors: Mapping[str, Tensor], untold: Mapping[str, int], path: str | Path
) -> list[Cut]:
    """Cuts of layers whose tensors are smaller in a file than in the network.

    Args:
        model: The network as it was before pruning.
        tensors: Those of the file.
        untold: Widths of layers that have no tensor to tell them.
        path: The file, for errors.

    Raises:
        SelectorError: A layer is wider in the file.
    """
    cuts: list[Cut] = []
    for name, layer in model.named_modules():
        saved = _saved_widths(name, layer, tensors)
        if name in untold:
            saved = {"both": untold[name]}
        for side, width in saved.items():
            now = layer_width(layer, side)
            if width > now or width < 1:
                raise SelectorError(
                    f"{path}: layer {name!r} is saved with {width} {side!r} channels and built "
                    f"with {now}; build must make the network as it was before pruning"
                )
            if width < now:
                cuts.append(Cut(name, side, _surplus(layer, side, width)))
    return cuts


def bare_cuts(
    model: nn.Module, widths: Mapping[str, Mapping[str, int]], path: str | Path
) -> list[Cut]:
    """Cuts of tensors outside layers, and of numbers that modules keep of their channels."""
    cuts = []
    for name, sides in widths.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise SelectorError(
                f"{path} was made of a network with a module {name!r}; build must make that network"
            ) from None
        for side, left in sides.items():
            now = bare_width(module, side)
            if now is None or not 0 < left <= now:
                raise SelectorError(
                    f"{path}: {side!r} of module {name!r} is {left} there and {now} in the network "
                    "that build makes; build must make the network as it was before pruning"
                )
            if left < now:
                cuts.append(Cut(name, side, tuple(range(left, now))))
    return cuts


def check_ends(model: nn.Module, cuts: Sequence[Cut], path: str | Path) -> None:
    """Refuse a file of a network with other classes or other input channels.

    Pruning leaves a network's inputs and outputs whole. So some layer that is defined later reads
    the outputs that a layer has lost, or one anywhere has lost the same share of its inputs; and
    the other way round.

    Raises:
        SelectorError: A first layer lost inputs, or a last one outputs.
    """
    places = {name: number for number, (name, _) in enumerate(model.named_modules())}
    for cut in cuts:
        layer = model.get_submodule(cut.layer)
        if cut.side not in ("in", "out"):
            continue
        others = [one for one in cuts if one.side in ("in", "out") and one.side != cut.side]
        sign = 1 if cut.side == "out" else -1
        beyond = [one for one in others if (places[one.layer] - places[cut.layer]) * sign > 0]
        share = len(cut.indices) / layer_width(layer, cut.side)
        alike = [
            one
            for one in others
            if len(one.indices) / layer_width(model.get_submodule(one.layer), one.side) == share
        ]
        if not beyond and not alike:
            what = "outputs (classes)" if cut.side == "out" else "input channels"
            width = layer_width(layer, cut.side)
            raise SelectorError(
                f"{path}: layer {cut.layer!r} has {width - len(cut.indices)} {what} there and "
                f"{width} in the network that build makes, and no other layer has changed with "
                "it; build must make a network of the file's classes and input channels"
            )


def _surplus(layer: nn.Module, side: Side, width: int) -> tuple[int, ...]:
    """The last positions, so that the layer keeps `width`; of a grouped layer, in every group."""
    now, per_group = layer_width(layer, side), positions_per_group(layer, side)
    kept = width * per_group // now
    return tuple(index for index in range(now) if index % per_group >= kept)


def _saved_widths(name: str, layer: nn.Module, tensors: Mapping[str, Tensor]) -> dict[Side, int]:
    if isinstance(layer, NORMALISATION | INSTANCE_NORMALISATION):
        saved = tensors.get(f"{name}.running_mean", tensors.get(f"{name}.weight"))
        return {} if saved is None or saved.ndim != 1 else {"both": saved.shape[0]}
    if isinstance(layer, nn.RNNBase):
        saved = tensors.get(f"{name}.weight_ih_l0")
        return {} if saved is None or saved.ndim != 2 else {"in": saved.shape[1]}
    if is_packed_attention(layer):
        saved = tensors.get(f"{name}.in_proj_weight")
        if saved is None or saved.ndim != 2:
            return {}
        return {"out": saved.shape[0], "in": saved.shape[1]}
    saved = tensors.get(f"{name}.weight")
    if is_statistics_norm(layer):
        return {} if saved is None or saved.ndim != 1 else {"both": saved.shape[0]}
    if saved is None or not isinstance(layer, CONVOLUTION | nn.Linear | nn.PReLU):
        return {}
    if saved.ndim != layer.weight.ndim:
        return {}  # Loading will name it.
    if isinstance(layer, nn.PReLU):
        return {"both": saved.shape[0]}
    if is_depthwise(layer):
        return {"both": saved.shape[0]}
    widths: dict[Side, int] = {
        "out": saved.shape[output_dimension(layer)],
        "in": saved.shape[input_dimension(layer)],
    }
    if isinstance(layer, CONVOLUTION):
        widths[shared_side(layer)] *= layer.groups
    return widths
