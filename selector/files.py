"""Files that are written whole or not at all, and JSON that is checked when it is read."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from selector.errors import SelectorError

T = TypeVar("T")


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file next to the target, which then takes its place.

    Raises:
        SelectorError: The file cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        write(partial)
        os.replace(partial, target)
    except OSError as error:
        raise SelectorError(f"{target} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write text, whole or not at all.

    Raises:
        SelectorError: The file cannot be written.
    """
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8", newline="\n"))


def read_text(path: str | Path, what: str) -> str:
    """Read text.

    Args:
        path: The file.
        what: What it is to hold, for the message.

    Raises:
        SelectorError: No such file, or no text in it.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise SelectorError(f"{what} {path} cannot be read: {error}") from error


def of_json(text: str, kind: type[T], what: str) -> T:
    """Read a dataclass back from the JSON of its fields.

    Raises:
        SelectorError: No JSON, or fields that are missing, unknown or of another type; the first
            is named.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise SelectorError(f"this is not {what}: {error}") from error
    return of_plain(raw, kind, what)


def of_plain(raw: object, kind: type[T], what: str) -> T:
    """Read a dataclass back from dictionaries and lists, as JSON gives them.

    Numbers must be finite. Standard errors may be NaN: those of a single batch are.

    Raises:
        SelectorError: As `of_json`.
    """
    import msgspec  # Only here: most calls read no file.

    try:
        found = msgspec.convert(raw, kind)
        known = msgspec.to_builtins(found)
    except (ValueError, RecursionError, OverflowError, TypeError) as error:
        raise SelectorError(f"this is not {what}: {error}") from error
    for place, given, kept in _pairs(raw, known, "$"):
        if isinstance(given, float) and not math.isfinite(given):
            if not (math.isnan(given) and place.endswith("standard_error")):
                raise SelectorError(
                    f"this is not {what}: {given} is not a finite number - at {place}"
                )
        if isinstance(given, Mapping) and isinstance(kept, Mapping):
            if unknown := [name for name in given if name not in kept]:
                raise SelectorError(
                    f"this is not {what}: unknown field {unknown[0]!r} - at {place}"
                )
    return found


def _pairs(raw: object, known: object, place: str) -> Iterator[tuple[str, object, object]]:
    """Every value as it was given and as it was understood, with its place."""
    yield place, raw, known
    if isinstance(raw, Mapping) and isinstance(known, Mapping):
        for name in raw.keys() & known.keys():
            yield from _pairs(raw[name], known[name], f"{place}.{name}")
    elif isinstance(raw, list) and isinstance(known, list | tuple):
        for number, (one, other) in enumerate(zip(raw, known, strict=True)):
            yield from _pairs(one, other, f"{place}[{number}]")
