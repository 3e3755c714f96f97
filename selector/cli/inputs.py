"""What was typed, understood: `package.module:factory`, lists of names, numbers and shares."""

import importlib
import math
import re
import sys
import traceback
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from selector.errors import SelectorError

if TYPE_CHECKING:
    from selector.planning.criteria import Verify


def made(name: str, option: str) -> object:
    """What a factory returns; an error in the user's own code is reported with its place.

    Args:
        name: `package.module:factory`.
        option: Where it was typed, for the message.

    Raises:
        SelectorError: No such factory, or one that failed.
    """
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
        raise SelectorError(f"{option} {name}() failed: {described(error)}") from error


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
        raise SelectorError(f"{option} {name}: cannot be imported: {described(error)}") from error


def described(error: Exception) -> str:
    """An error of code that is not ours: its kind, its message, and where it was raised."""
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


def verify_count(text: str) -> "Verify":
    """A number of candidates, or `all`.

    >>> verify_count("3"), verify_count("all")
    (3, 'all')
    """
    if text == "all":
        return "all"
    if not text.isdecimal():
        raise SelectorError(f"--verify {text!r} must be 0, 1, 2, ... or all")
    return int(text)


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers above 0, between commas or crosses.

    >>> whole_numbers("3,32,32", "--input"), whole_numbers("1x28x28", "--input")
    ((3, 32, 32), (1, 28, 28))
    """
    parts = [part.strip() for part in re.split(r"[,x]", text)]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise SelectorError(f"{option} {text!r} must be whole numbers, as in 3,32,32")
    return tuple(map(int, parts))
