"""Pruned network -> file -> the original class, without pickle.

The file holds tensors alone. Widths follow from their shapes: layers of a freshly built network are
cut to fit, whichever channels, and then every tensor is overwritten.
"""

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selector.data.checks import check_model
from selector.errors import SelectorError
from selector.files import write_whole
from selector.network.layers import (
    CONVOLUTION,
    NORMALISATION,
    is_depthwise,
    layer_width,
    positions_per_group,
)
from selector.network.surgery import Cut, apply_cuts
from selector.typing import Side


def save_pruned(model: nn.Module, path: str | Path) -> None:
    """Write the network's tensors as safetensors, whole or not at all.

    Raises:
        SelectorError: The file cannot be written.
    """
    check_model(model)
    tensors = {
        name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()
    }
    about = {"saliency-selector": version("saliency-selector"), "class": type(model).__qualname__}
    try:
        write_whole(path, lambda file: save_file(tensors, file, {"about": json.dumps(about)}))
    except SafetensorError as error:
        raise SelectorError(f"{path} cannot be written: {error}") from error


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
    tensors = read_tensors(path)
    model = build()
    check_model(model, "what build returns")
    apply_cuts(model, _cuts_to_fit(model, tensors, path))
    load_tensors(model, tensors, path)
    return model


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        SelectorError: No such file, or not safetensors.
    """
    try:
        with safe_open(path, "pt"):
            pass
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SelectorError(f"{path} cannot be read as safetensors: {error}") from error


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Put tensors into a network of the same shapes; only batch counters may be missing.

    Raises:
        SelectorError: A tensor is missing, left over, or of another shape; the first is named.
    """
    own = model.state_dict()
    for name, tensor in tensors.items():
        if name not in own:
            raise SelectorError(f"{path} holds {name!r}, which the network does not have")
        if own[name].shape != tensor.shape:
            raise SelectorError(
                f"{path}: {name!r} has shape {tuple(tensor.shape)}, the network's has "
                f"{tuple(own[name].shape)}; these weights belong to another network"
            )
    for name in own:
        if name not in tensors and not name.endswith("num_batches_tracked"):
            raise SelectorError(f"{path} lacks {name!r}, which the network needs")
    model.load_state_dict(dict(tensors), strict=False)


def _cuts_to_fit(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> list[Cut]:
    cuts: list[Cut] = []
    for name, layer in model.named_modules():
        for side, width in _saved_widths(name, layer, tensors).items():
            now = layer_width(layer, side)
            if width > now or width < 1:
                raise SelectorError(
                    f"{path}: layer {name!r} is saved with {width} {side!r} channels and built "
                    f"with {now}; build must make the network as it was before pruning"
                )
            if width < now:
                cuts.append(Cut(name, side, _surplus(layer, side, width)))
    return cuts


def _surplus(layer: nn.Module, side: Side, width: int) -> tuple[int, ...]:
    """The last positions, so that the layer keeps `width`; of a grouped layer, in every group."""
    now, per_group = layer_width(layer, side), positions_per_group(layer, side)
    kept = width * per_group // now
    return tuple(index for index in range(now) if index % per_group >= kept)


def _saved_widths(name: str, layer: nn.Module, tensors: Mapping[str, Tensor]) -> dict[Side, int]:
    if isinstance(layer, NORMALISATION):
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
