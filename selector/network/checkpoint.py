"""Pruned network -> file -> the original class, without pickle.

The file holds tensors alone. Widths follow from their shapes: layers of a freshly built network are
cut to fit, whichever channels, and then every tensor is overwritten.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from selector.data.checks import check_model
from selector.data.exclusive import one_at_a_time
from selector.errors import SelectorError
from selector.network.copying import uncompiled
from selector.network.layers import (
    CONVOLUTION,
    INSTANCE_NORMALISATION,
    NORMALISATION,
    is_depthwise,
    layer_width,
    positions_per_group,
)
from selector.network.surgery import Cut, apply_cuts
from selector.serialisation import of_plain
from selector.tensor_files import read_tensor_file, save_tensors
from selector.typing import Side

ABOUT = "about"


@one_at_a_time
def save_pruned(model: nn.Module, path: str | Path) -> None:
    """Write the network's tensors as safetensors, whole or not at all.

    What `get_extra_state` of a module gives is written beside them as JSON.

    Raises:
        SelectorError: The file cannot be written, or an extra state is not plain data.
    """
    check_model(model)
    state = uncompiled(model).state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    about = {
        "saliency-selector": version("saliency-selector"),
        "class": type(uncompiled(model)).__qualname__,
        "extra": {name: _plain(name, x) for name, x in state.items() if name not in tensors},
        "widths": _untold_widths(uncompiled(model)),
    }
    save_tensors(path, tensors, ABOUT, about)


def _plain(name: str, value: object) -> object:
    """An extra state, once it is sure that it comes back from JSON as it is."""
    try:
        same = json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        same = False
    if not same:
        raise SelectorError(
            f"the extra state {name!r} cannot be written: get_extra_state must return a tensor or "
            "plain data (numbers, text, lists, dictionaries with text as keys)"
        )
    return value


def _untold_widths(model: nn.Module) -> dict[str, int]:
    """Widths of layers that have no tensor to tell them: InstanceNorm without parameters."""
    return {
        name: layer.num_features
        for name, layer in model.named_modules()
        if isinstance(layer, INSTANCE_NORMALISATION) and not layer.state_dict()
    }


def load_pruned(build: Callable[[], nn.Module], path: str | Path) -> nn.Module:
    """Build the unpruned network, cut it to the file's widths, and load the file's tensors.

    Args:
        build: Makes the network as it was before pruning; its weights do not matter.
        path: A file of `save_pruned`.

    Raises:
        SelectorError: The file cannot be read, or its tensors do not belong to this network.
    """
    if isinstance(build, nn.Module) or not callable(build):
        raise SelectorError(
            f"build must be a function that makes the unpruned network, not a "
            f"{type(build).__name__}; pass the class, or lambda: ..."
        )
    tensors, about = _read(path)
    model = build()
    check_model(model, "what build returns")
    cuts = _cuts_to_fit(model, tensors, about.widths, path)
    _check_ends(model, cuts, path)
    apply_cuts(model, cuts)
    load_tensors(model, {**tensors, **about.extra}, path)
    return model


@dataclass(frozen=True)
class _About:
    """What a file says beside its tensors; nothing in files of other programs."""

    extra: dict[str, object] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)


def _read(path: str | Path) -> tuple[dict[str, Tensor], _About]:
    tensors, about = read_tensor_file(path, ABOUT)
    known = {name: about[name] for name in ("extra", "widths") if name in about}
    try:
        return tensors, of_plain(known, _About, "what save_pruned writes beside tensors")
    except SelectorError as error:
        raise SelectorError(f"{path} is damaged: {error}") from error


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        SelectorError: No such file, not safetensors, or damaged.
    """
    return read_tensor_file(path, ABOUT)[0]


def load_tensors(model: nn.Module, tensors: Mapping[str, Any], path: str | Path) -> None:
    """Put tensors into a network of the same shapes.

    Only batch counters may be missing, and all but one name of a tensor that the network shares.

    Extra states that are not there stay as they are.

    Raises:
        SelectorError: A tensor is missing, left over, or of another shape; the first is named.
    """
    own = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        if name not in own:
            raise SelectorError(f"{path} holds {name!r}, which the network does not have")
        if isinstance(tensor, Tensor) and own[name].shape != tensor.shape:
            raise SelectorError(
                f"{path}: {name!r} has shape {tuple(tensor.shape)}, the network's has "
                f"{tuple(own[name].shape)}; these weights belong to another network"
            )
    given = {id(tensor) for name, tensor in own.items() if name in tensors}
    for name, tensor in own.items():
        if name in tensors or id(tensor) in given:
            continue
        if not name.endswith(("num_batches_tracked", "_extra_state")):
            raise SelectorError(f"{path} lacks {name!r}, which the network needs")
    model.load_state_dict(dict(tensors), strict=False)


def _cuts_to_fit(
    model: nn.Module, tensors: Mapping[str, Tensor], untold: Mapping[str, int], path: str | Path
) -> list[Cut]:
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


def _check_ends(model: nn.Module, cuts: Sequence[Cut], path: str | Path) -> None:
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
        if cut.side == "both":
            continue
        others = [one for one in cuts if one.side not in (cut.side, "both")]
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
        return {} if saved is None else {"both": saved.shape[0]}
    saved = tensors.get(f"{name}.weight")
    if saved is None or not isinstance(layer, CONVOLUTION | nn.Linear | nn.PReLU):
        return {}
    if isinstance(layer, nn.PReLU):
        return {"both": saved.shape[0]}
    if is_depthwise(layer):
        return {"both": saved.shape[0]}
    if isinstance(layer, CONVOLUTION) and layer.groups > 1:
        if layer.transposed:
            return {}  # refused, so never cut
        # The weight has one column for each offset in a group.
        return {"out": saved.shape[0], "in": saved.shape[1] * layer.groups}
    transposed = isinstance(layer, CONVOLUTION) and layer.transposed
    return {"out": saved.shape[int(transposed)], "in": saved.shape[1 - int(transposed)]}
