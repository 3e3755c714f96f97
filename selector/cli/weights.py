"""A user's weights: safetensors, checkpoints of PyTorch, or a network pruned by this command."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from selector.errors import SelectorError
from selector.network.checkpoint import ABOUT, load_pruned, load_tensors, read_tensors
from selector.tensor_files import read_tensor_file

TORCH_SUFFIXES = frozenset({".bin", ".ckpt", ".pkl", ".pt", ".pth", ".tar"})
WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
"""Where checkpoints keep the weights, next to epochs and optimizers."""
PREFIXES = ("module.", "model.", "net.", "network.")
"""What wrappers put before the names of a network's tensors."""


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Give a network its weights, cut to fit where the file holds a network pruned by this command.

    Args:
        model: As the factory made it; its own weights do not matter.
        path: Safetensors, or a checkpoint of `torch.save` that holds tensors alone.

    Raises:
        SelectorError: The file cannot be read, or belongs to another network: other layers, other
            classes, other input channels.
    """
    if path.suffix.lower() not in TORCH_SUFFIXES:
        if _is_pruned(path):
            return load_pruned(lambda: model, path)
        tensors = read_tensors(path)
    else:
        tensors = _of_torch(path)
    load_tensors(model, _renamed(tensors, model), path)
    return model


def _is_pruned(path: Path) -> bool:
    """Whether the file says that `save_pruned` wrote it."""
    return "saliency-selector" in read_tensor_file(path, ABOUT)[1]


def _of_torch(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SelectorError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # Whatever unpickling raises.
        raise SelectorError(
            f"{path} holds more than tensors (a pickled network?), or is damaged, and is not "
            "loaded, since unpickling can run any code; save network.state_dict() instead, best as "
            f"safetensors ({type(error).__name__})"
        ) from error
    return _tensors(found, path)


def _tensors(found: object, path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, wherever it keeps them."""
    if not isinstance(found, Mapping):
        raise SelectorError(f"{path} holds a {type(found).__name__}, and no mapping of tensors")
    for key in WEIGHT_KEYS:
        inside = found.get(key)
        if isinstance(inside, Mapping) and _holds_tensors(inside):
            return _tensors(inside, path)
    tensors = {str(n): value for n, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise SelectorError(
            f"{path} holds no weights; its keys are {', '.join(map(str, found))}, and weights are "
            f"looked for under {', '.join(WEIGHT_KEYS)}"
        )
    return tensors


def _holds_tensors(values: Mapping[object, object]) -> bool:
    return any(
        isinstance(value, Tensor) or (isinstance(value, Mapping) and _holds_tensors(value))
        for value in values.values()
    )


def _renamed(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors by the network's own names, without what wrappers put before or between."""
    own = set(model.state_dict())
    found = dict(tensors)
    if own.isdisjoint(found):
        found.pop("n_averaged", None)  # Of torch.optim.swa_utils.AveragedModel.
    if not any("_orig_mod" in name.split(".") for name in own):
        found = {
            ".".join(part for part in name.split(".") if part != "_orig_mod"): tensor
            for name, tensor in found.items()
        }
    while own.isdisjoint(found):
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found
