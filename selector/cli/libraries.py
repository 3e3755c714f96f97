"""Networks of libraries by name, and how their makers prepare images: timm, torchvision, HF."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from selector.cli.inputs import described, import_module
from selector.errors import SelectorError
from selector.network.layers import CONVOLUTION


@dataclass(frozen=True)
class Preparation:
    """How a network's makers prepared its images; None where nobody says."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    channels: int = 3


@dataclass(frozen=True)
class Library:
    """How networks of a library are made by name."""

    names: Callable[[], Iterable[str]]
    make: Callable[..., nn.Module]
    """`make(name, pretrained, **options)`."""
    preparation: Callable[[str, nn.Module], Preparation]
    classifier: Callable[[nn.Module], str]
    """Name of the layer whose outputs are the classes."""


def first_convolution(model: nn.Module) -> tuple[str, Any] | None:
    """Name and layer of the first convolution, if there is one."""
    layers = ((n, m) for n, m in model.named_modules() if isinstance(m, CONVOLUTION))
    return next(layers, None)


def input_channels(model: nn.Module) -> int:
    """Planes of the images that a network takes: 1 where its first convolution has one input."""
    first = first_convolution(model)
    return 1 if first is not None and first[1].in_channels == 1 else 3


def _last_layer(model: nn.Module) -> str:
    kinds = (CONVOLUTION, nn.Linear)
    names = [name for name, layer in model.named_modules() if isinstance(layer, kinds)]
    return str(names[-1])


def _timm() -> Library:
    timm = _library("timm")

    def make(name: str, published: bool, **options: int) -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=published, **options)
        return model

    def preparation(name: str, model: nn.Module) -> Preparation:
        about: Any = model.pretrained_cfg
        mean, std, side = about["mean"], about["std"], int(about["input_size"][-1])
        if input_channels(model) == 1:
            return Preparation(tuple(mean[:1]), tuple(std[:1]), side, 1)
        return Preparation(tuple(mean), tuple(std), side)

    def classifier(model: nn.Module) -> str:
        name = model.pretrained_cfg.get("classifier")  # type: ignore[operator, union-attr]
        name = name[0] if isinstance(name, tuple | list) else name
        return str(name or _last_layer(model))

    return Library(timm.list_models, make, preparation, classifier)


def _torchvision() -> Library:
    models = _library("torchvision").models

    def make(name: str, published: bool, **options: int) -> nn.Module:
        if "in_chans" in options:
            raise SelectorError(
                f"torchvision's {name} takes 3 input channels and the weights' network "
                f"{options['in_chans']}; name the function that makes it: package.module:factory"
            )
        model: nn.Module = models.get_model(
            name, weights="DEFAULT" if published else None, **options
        )
        return model

    def preparation(name: str, model: nn.Module) -> Preparation:
        how = models.get_model_weights(name).DEFAULT.transforms()
        size = getattr(how, "crop_size", [224])
        return Preparation(tuple(how.mean), tuple(how.std), int(size[0]))

    return Library(lambda: models.list_models(module=models), make, preparation, _last_layer)


LIBRARIES: dict[str, Callable[[], Library]] = {"timm": _timm, "torchvision": _torchvision}
"""What stands before the colon -> the library; it is imported when it is asked for."""


def from_folder(name: str, folder: Path) -> tuple[nn.Module, Preparation]:
    """A network that `save_pretrained` of Hugging Face's transformers wrote, with its weights.

    Raises:
        SelectorError: No such folder, or no classifier of images in it.
    """
    if not folder.is_dir():
        raise SelectorError(
            f"--model {name}: no such folder; save_pretrained writes one, with a config.json"
        )
    transformers = _library("transformers")
    try:
        model: nn.Module = transformers.AutoModelForImageClassification.from_pretrained(folder)
    except Exception as error:
        raise SelectorError(f"--model {name} cannot be read: {described(error)}") from error
    channels = input_channels(model)
    try:
        about = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        size = about.get("crop_size", about.get("size")) or {}
        side = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
        mean, std = tuple(about["image_mean"]), tuple(about["image_std"])
    except (OSError, ValueError, KeyError, TypeError):
        return model, Preparation(channels=channels)
    return model, Preparation(mean, std, None if side is None else int(side), channels)


def _library(name: str) -> Any:
    try:
        __import__(name)
    except ImportError as error:
        raise SelectorError(f"--model {name}:... needs {name}: pip install {name}") from error
    return import_module(name, "--model")
