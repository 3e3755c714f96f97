"""Dataclasses from JSON, every field checked."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import TypeVar

from selector.errors import SelectorError

T = TypeVar("T")


def of_json(text: str, kind: type[T], what: str, *, finite: bool = True) -> T:
    """Read a dataclass back from the JSON of its fields.

    Raises:
        SelectorError: No JSON, or fields that are missing, unknown or of another type; the first
            is named.
    """
    return of_plain(plain_json(text, what), kind, what, finite=finite)


def plain_json(text: str, what: str) -> object:
    """What JSON says, as dictionaries and lists.

    Raises:
        SelectorError: No JSON, nested too deeply, or text that no encoding has.
    """
    try:
        found: object = json.loads(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()  # Halves of characters fail here.
    except (ValueError, RecursionError, TypeError) as error:
        raise SelectorError(f"this is not {what}: {error}") from error
    return found


def of_plain(raw: object, kind: type[T], what: str, *, finite: bool = True) -> T:
    """Read a dataclass back from dictionaries and lists, as JSON gives them.

    Args:
        raw: Dictionaries and lists.
        kind: What they are to become.
        what: That in words, for the message.
        finite: Whether numbers must be finite. Standard errors may be NaN: those of a single batch
            are.

    Raises:
        SelectorError: As `of_json`.
    """
    import msgspec  # Only here: most calls read no file.

    try:
        found = msgspec.convert(raw, kind)
        known = msgspec.to_builtins(found)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError, TypeError) as error:
        raise SelectorError(f"this is not {what}: {error}") from error
    for place, given, kept in _pairs(raw, known, "$"):
        if finite and isinstance(given, float) and not math.isfinite(given):
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
