"""A user's weights: safetensors, checkpoints of PyTorch, or a network pruned by this command."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from selector.cli.pickles import read_inert
from selector.errors import SelectorError
from selector.network.checkpoint import ABOUT, load_pruned, load_tensors, read_tensors
from selector.tensor_files import read_tensor_file

LOG = logging.getLogger("selector")

TORCH_SUFFIXES = frozenset({".bin", ".ckpt", ".pkl", ".pt", ".pth", ".tar"})
WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
"""Where checkpoints keep the weights, next to epochs and optimizers; looked at first."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Found:
    """Tensors of a checkpoint that could be the network's."""

    label: str
    """Where they are in it: keys of dictionaries, then what stands before the tensors' names."""
    tensors: Tensors
    """By the network's own names, as far as they are known."""
    known: int
    """How many of them the network knows."""
    left_out: tuple[str, ...] = ()
    """Tensors beside them, which belong to something else."""


def load_weights(model: nn.Module, path: Path, key: str | None = None) -> nn.Module:
    """Give a network its weights, cut to fit where the file holds a network pruned by this command.

    Args:
        model: As the factory made it; its own weights do not matter.
        path: Safetensors, or a checkpoint of `torch.save`.
        key: Where the weights are in the checkpoint, where that is not clear.

    Raises:
        SelectorError: The file cannot be read, or belongs to another network: other layers, other
            classes, other input channels.
    """
    if is_pruned(path):
        return load_pruned(lambda: model, path)
    load_tensors(model, tensors_for(model, path, key), path)
    return model


def is_pruned(path: Path) -> bool:
    """Whether the file says that `save_pruned` wrote it."""
    if path.suffix.lower() in TORCH_SUFFIXES:
        return False
    return "saliency-selector" in read_tensor_file(path, ABOUT)[1]


def tensors_for(model: nn.Module, path: Path, key: str | None = None) -> Tensors:
    """The tensors of a file that are a network's, by the network's names.

    Where a checkpoint holds several sets of weights (a student and a teacher, an average), the one
    that fits best is taken, and a choice is asked for where two fit equally well and differ.

    Raises:
        SelectorError: The file cannot be read, holds no weights, or several.
    """
    own = set(model.state_dict())
    held = _of_torch(path) if path.suffix.lower() in TORCH_SUFFIXES else read_tensors(path)
    sets = list(_sets(held, ""))
    if not sets:
        keys = ", ".join(map(str, held)) or "none"
        raise SelectorError(
            f"{path} holds no weights; its keys are {keys}, and weights are looked for under "
            f"{', '.join(WEIGHT_KEYS)} and every other key that holds named tensors"
        )
    found = [one for label, tensors in sets for one in _readings(label, tensors, own)]
    if key is not None:
        asked = [one for one in found if key.strip("./") in one.label.split("/")]
        if not asked:
            labels = ", ".join(one.label or "(no key)" for one in found)
            raise SelectorError(f"{path} has no weights under {key!r}; it has: {labels}")
        found = asked
    best = max(one.known for one in found)
    equal = [one for one in found if one.known == best]
    chosen = equal[0]
    if best and any(not _same(chosen.tensors, one.tensors) for one in equal[1:]):
        labels = ", ".join(one.label or "(no key)" for one in equal)
        raise SelectorError(
            f"{path} holds several sets of weights that fit the network: {labels}; say which by "
            "--weights-key"
        )
    if chosen.left_out:
        LOG.info(
            "%s: took the weights under %s, and left out %s",
            *(path, chosen.label, ", ".join(chosen.left_out[:4])),
        )
    return chosen.tensors


def _of_torch(path: Path) -> Mapping[object, object]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SelectorError(f"{path} cannot be read: {error}") from error
    except Exception:  # More than tensors, or a damaged file: the next reading will say.
        found = _inert(path)
    if isinstance(found, Mapping):
        return found
    raise SelectorError(f"{path} holds a {type(found).__name__}, and no mapping of tensors")


def _inert(path: Path) -> object:
    try:
        return read_inert(path)
    except Exception as error:  # Whatever unpickling raises.
        kind = "TorchScript or an exported program" if _is_archive(path) else "damaged"
        raise SelectorError(
            f"{path} cannot be read as a checkpoint ({kind}?); save network.state_dict(), best as "
            f"safetensors ({type(error).__name__})"
        ) from error


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _sets(held: object, label: str) -> Iterator[tuple[str, Tensors]]:
    """Sets of named tensors in a checkpoint, however deep, those under the usual keys first."""
    if not isinstance(held, Mapping):
        return
    tensors = {
        name: value
        for name, value in held.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if tensors:
        yield label, tensors
    names = [name for name in held if isinstance(name, str)]
    usual = {name: place for place, name in enumerate(WEIGHT_KEYS)}
    for name in sorted(names, key=lambda name: usual.get(name, len(usual))):
        yield from _sets(held[name], f"{label}/{name}".lstrip("/"))


def _readings(label: str, tensors: Tensors, own: set[str]) -> Iterator[Found]:
    """The tensors without what wrappers put before or between their names, in every likely way."""
    if not any("_orig_mod" in name.split(".") for name in own):
        tensors = {
            ".".join(part for part in name.split(".") if part != "_orig_mod"): tensor
            for name, tensor in tensors.items()
        }
    known: dict[str, int] = {}
    for name in tensors:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in own:
                prefix = "".join(f"{part}." for part in parts[:start])
                known[prefix] = known.get(prefix, 0) + 1
    if not known or known.get("", 0) == max(known.values()):
        yield Found(label, tensors, known.get("", 0))
        return
    most = max(known.values())
    for prefix in (prefix for prefix, count in known.items() if count == most):
        inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        others = tuple(n for n in tensors if not n.startswith(prefix) and n != "n_averaged")
        where = f"{label}/{prefix.rstrip('.')}".lstrip("/")
        yield Found(where, inside, most, others)


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
