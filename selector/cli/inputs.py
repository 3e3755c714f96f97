"""A user's network and data, from what was typed: `package.module:factory`, files and folders."""

import importlib
import math
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import cast

import pyarrow as pa
from torch import nn

from selector.cli.weights import load_weights
from selector.data.batches import Batches, check_batches
from selector.data.image_data import TensorBatches
from selector.data.image_files import read_images
from selector.errors import SelectorError
from selector.planning.criteria import Verify

IMAGES = 512
BATCH_SIZE = 64
HALF = (0.5,)
"""Mean and standard deviation where none is given: pixels 0..255 become -1..1."""


@dataclass(frozen=True)
class ImageOptions:
    """How images become batches, as typed; None where nothing was."""

    images: int | None
    batch_size: int | None
    mean: str | None
    std: str | None
    size: int | None
    bgr: bool

    @property
    def typed(self) -> list[str]:
        """The options that were typed, as they are typed."""
        fields = {name: value for name, value in vars(self).items() if value not in (None, False)}
        return [f"--{name.replace('_', '-')}" for name in fields]

    def batches(self, path: Path, limit: int | None) -> TensorBatches:
        """Read a Parquet file or an image folder and cut it into batches."""
        mean, std = (
            HALF if text is None else numbers(text, name)
            for name, text in (("--mean", self.mean), ("--std", self.std))
        )
        try:
            data = read_images(path, limit=limit, size=self.size)
        except (OSError, pa.ArrowException) as error:
            raise SelectorError(f"{path} cannot be read: {error}") from error
        size = BATCH_SIZE if self.batch_size is None else self.batch_size
        return TensorBatches(data, batch_size=size, mean=mean, std=std, bgr=self.bgr)


def read_model(factory: str, weights: Path | None) -> nn.Module:
    """Make the network and give it its weights, if a file is named.

    Raises:
        SelectorError: No such factory, no network from it, or weights that do not fit it.
    """
    model = _made(factory, "--model")
    if not isinstance(model, nn.Module):
        raise SelectorError(
            f"--model {factory} returned a {type(model).__name__}; it must return a torch.nn.Module"
        )
    return model if weights is None else load_weights(model, weights)


def read_data(
    data: str, test_data: str | None, options: ImageOptions
) -> tuple[Batches, Batches | None]:
    """Batches of the images to prune with, 512 of them by default, and of all the test images.

    Raises:
        SelectorError: Nothing there, nothing readable, or image options that would do nothing.
    """
    sources = [source for source in (data, test_data) if source is not None]
    if not any(Path(source).exists() for source in sources):
        _refuse(options.typed, " and ".join(sources))
    elif not Path(data).exists() and options.images is not None:
        _refuse(["--images"], data)
    limit = IMAGES if options.images is None else options.images
    test = None if test_data is None else _batches(test_data, "--test-data", options, None)
    return _batches(data, "--data", options, limit), test


def _refuse(typed: list[str], source: str) -> None:
    if typed and ":" in source:
        raise SelectorError(
            f"{typed[0]} does nothing to the batches of {source}; leave it out, or do it "
            "in the factory"
        )


def _batches(source: str, option: str, options: ImageOptions, limit: int | None) -> Batches:
    path = Path(source)
    if path.exists():
        return options.batches(path, limit)
    if ":" not in source:
        raise SelectorError(
            f"{option} {source}: no such file or folder; give a Parquet file of image and label, "
            "a folder with a folder of images per class, or package.module:factory"
        )
    batches = cast(Batches, _made(source, option))
    check_batches(batches)
    return batches


def _made(name: str, option: str) -> object:
    """What the factory returns; an error in the user's own code is reported with its place."""
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name):
        raise SelectorError(f"{option} {name!r} must have the form package.module:factory")
    module_name, _, attribute = name.partition(":")
    module = import_module(module_name, option)
    try:
        factory = cast(Callable[[], object], attrgetter(attribute)(module))
    except AttributeError as error:
        raise SelectorError(f"{option} {name}: {error}") from error
    if not callable(factory):
        raise SelectorError(f"{option} {name} is not a function but a {type(factory).__name__}")
    try:
        return factory()
    except SelectorError:
        raise
    except Exception as error:
        raise SelectorError(f"{option} {name}() failed: {_described(error)}") from error


def import_module(name: str, option: str) -> ModuleType:
    """A module of the user's own, also from the folder at hand.

    Raises:
        SelectorError: It cannot be imported; the option and the fault are named.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise SelectorError(f"{option} {name}: cannot be imported: {_described(error)}") from error


def _described(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    inside = frame.filename != __file__ and not frame.filename.startswith("<")
    place = f" ({frame.filename}, line {frame.lineno})" if inside else ""
    return f"{type(error).__name__}: {error}{place}"


def names(text: str, option: str) -> list[str]:
    """Names between commas.

    >>> names("conv1, conv2", "--ignore")
    ['conv1', 'conv2']
    """
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise SelectorError(f"{option} {text!r} has an empty name; separate names by single commas")
    return found


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers between commas.

    >>> numbers("0.5, 0.25", "--mean")
    (0.5, 0.25)
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise SelectorError(
            f"{option} {text!r} is not a list of numbers; write 0.5, or 0.485,0.456,0.406"
        )
    return found


def shares(text: str | None, option: str) -> dict[str, float] | None:
    """Names with a share each, between commas; nothing where nothing was typed.

    >>> shares("conv1=0.3, conv2=0.5", "--ratios")
    {'conv1': 0.3, 'conv2': 0.5}
    """
    if text is None:
        return None
    pairs = [part.partition("=") for part in names(text, option)]
    try:
        return {name.strip(): float(share) for name, _, share in pairs}
    except ValueError:
        raise SelectorError(f"{option} {text!r} must name shares, as in conv1=0.3") from None


def verify_count(text: str) -> Verify:
    """A number of candidates, or `all`.

    >>> verify_count("3"), verify_count("all")
    (3, 'all')
    """
    if text == "all":
        return "all"
    if not text.isdecimal():
        raise SelectorError(f"--verify {text!r} must be 0, 1, 2, ... or all")
    return int(text)
