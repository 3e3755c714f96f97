"""A user's network, from what was typed: `timm:NAME`, `torchvision:NAME`, a folder, a factory."""

import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from selector.cli.inputs import made
from selector.cli.libraries import (
    LIBRARIES,
    Library,
    Preparation,
    first_convolution,
    from_folder,
    input_channels,
)
from selector.cli.weights import is_pruned, load_weights, tensors_for
from selector.errors import SelectorError
from selector.network.checkpoint import read_tensors

RANDOM = Path("random")
"""What is typed for `--weights` where a network shall keep the weights that it is made with."""


@dataclass(frozen=True)
class Loaded:
    """A network as the commands take it, and how its images are prepared."""

    model: nn.Module
    preparation: Preparation


def read_network(
    name: str, weights: Path | None, *, key: str | None = None, needed: bool = True
) -> Loaded:
    """Make the network and give it its weights.

    Args:
        name: `timm:NAME`, `torchvision:NAME`, `transformers:FOLDER`, or `package.module:factory`.
        weights: A file, or `random`. By default those of the factory, or the published ones.
        key: Where the weights are in a checkpoint, where that is not clear.
        needed: Whether weights matter; where not, none are downloaded.

    Raises:
        SelectorError: No such network, or weights that do not fit it.
    """
    kind, _, rest = name.partition(":")
    file = None if weights in (None, RANDOM) else weights
    if kind in LIBRARIES:
        library = LIBRARIES[kind]()
        if rest not in library.names():
            near = get_close_matches(rest, library.names(), n=3)
            known = f"; did you mean {', '.join(near)}?" if near else ""
            raise SelectorError(f"--model {name}: {kind} has no network {rest!r}{known}")
        model = _of_library(library, name, rest, file, key, needed and weights is None)
        return Loaded(model, library.preparation(rest, model))
    if kind == "transformers":
        model, preparation = from_folder(name, Path(rest))
        return Loaded(model if file is None else load_weights(model, file, key), preparation)
    found = made(name, "--model")
    if not isinstance(found, nn.Module):
        raise SelectorError(
            f"--model {name} returned a {type(found).__name__}; it must return a torch.nn.Module"
        )
    model = found if file is None else load_weights(found, file, key)
    return Loaded(model, Preparation(channels=input_channels(model)))


def _of_library(
    library: Library, name: str, known: str, file: Path | None, key: str | None, published: bool
) -> nn.Module:
    """A network of a library, with as many classes and input channels as the file has."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of what a library will change one day.
            model = library.make(known, published)
    except SelectorError:
        raise
    except Exception as error:  # No network, no room, an argument that is missing.
        way_out = "make it by a factory: package.module:factory"
        if published:
            way_out = "give the file with --weights, or --weights random for none"
        raise SelectorError(
            f"--model {name} cannot be made{' with its published weights' if published else ''} "
            f"({type(error).__name__}: {_first_line(error)}); {way_out}"
        ) from error
    if file is None:
        return model
    tensors = read_tensors(file) if is_pruned(file) else tensors_for(model, file, key)
    options = _options(library, model, tensors)
    if options:
        model = library.make(known, False, **options)
    return load_weights(model, file, key)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else "no message"


def _options(library: Library, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Numbers of classes and of input channels, where the file's are not the usual ones."""
    found = {}
    last = f"{library.classifier(model)}.weight"
    weight = tensors.get(last)
    if weight is not None and weight.shape[0] != model.state_dict()[last].shape[0]:
        found["num_classes"] = int(weight.shape[0])
    first = first_convolution(model)
    weight = None if first is None else tensors.get(f"{first[0]}.weight")
    if first is not None and weight is not None and first[1].groups == 1:
        if weight.shape[1] != first[1].in_channels:
            found["in_chans"] = int(weight.shape[1])
    return found


def placed(model: nn.Module, device: str) -> nn.Module:
    """The network on a device.

    Args:
        model: The network.
        device: As PyTorch writes it, or `auto` for a GPU where there is one.

    Raises:
        SelectorError: No such device, or none that can be used here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        line = str(error).strip().splitlines()[0]
        raise SelectorError(
            f"--device {device} cannot be used here: {line}; `saliency-selector doctor` lists what "
            "there is"
        ) from error


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch, before a factory is called."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
