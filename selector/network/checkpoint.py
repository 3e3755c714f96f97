"""Pruned network -> file -> the original class, without pickle.

The file holds tensors alone. Widths follow from their shapes: layers of a freshly built network are
cut to fit, whichever channels, and then every tensor is overwritten.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from selector.data.checks import check_model
from selector.data.exclusive import lock_of
from selector.data.plain_weights import make_plain, normalise_again, weight_shapes
from selector.errors import SelectorError
from selector.network.bare import cut_widths
from selector.network.copying import uncompiled
from selector.network.fitting import bare_cuts, check_ends, cuts_to_fit
from selector.network.layers import (
    INSTANCE_NORMALISATION,
    is_statistics_norm,
    layer_width,
)
from selector.network.surgery import apply_cuts
from selector.serialisation import of_plain
from selector.tensor_files import read_tensor_file, save_tensors

ABOUT = "about"


def save_pruned(model: nn.Module, path: str | Path) -> None:
    """Write the network's tensors as safetensors, whole or not at all.

    What `get_extra_state` of a module gives is written beside them as JSON.

    Raises:
        SelectorError: The file cannot be written, or an extra state is not plain data.
    """
    check_model(model)
    with lock_of(model):
        _save(model, path)


def _save(model: nn.Module, path: str | Path) -> None:
    state = uncompiled(model).state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    about = {
        "saliency-selector": version("saliency-selector"),
        "class": type(uncompiled(model)).__qualname__,
        "extra": {name: _plain(name, x) for name, x in state.items() if name not in tensors},
        "widths": _untold_widths(uncompiled(model)),
        "bare": {
            name: widths
            for name, module in uncompiled(model).named_modules()
            if (widths := cut_widths(module))
        },
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
        name: layer_width(layer, "both")
        for name, layer in model.named_modules()
        if isinstance(layer, INSTANCE_NORMALISATION) or is_statistics_norm(layer)
        if not layer.state_dict()
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
    make_plain(model)
    shapes = {
        f"{name}.weight": tensors[f"{name}.{other}"]
        for name, other in weight_shapes(model).items()
        if f"{name}.{other}" in tensors
    }
    cuts = cuts_to_fit(model, {**tensors, **shapes}, about.widths, path)
    cuts += bare_cuts(model, about.bare, path)
    check_ends(model, cuts, path)
    apply_cuts(model, cuts)
    normalise_again(model)
    load_tensors(model, {**tensors, **about.extra}, path)
    return model


@dataclass(frozen=True)
class _About:
    """What a file says beside its tensors; nothing in files of other programs."""

    extra: dict[str, object] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    bare: dict[str, dict[str, int]] = field(default_factory=dict)


def _read(path: str | Path) -> tuple[dict[str, Tensor], _About]:
    tensors, about = read_tensor_file(path, ABOUT)
    known = {name: about[name] for name in ("extra", "widths", "bare") if name in about}
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
    state = OrderedDict(tensors)
    # Modules read their version of it: tensors made by this very code have the present one.
    cast(Any, state)._metadata = getattr(own, "_metadata", None)
    model.load_state_dict(state, strict=False)
