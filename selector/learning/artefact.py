"""A selector as a folder: boosters as LightGBM text, the rest as JSON, with checksums."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from selector.errors import SelectorError
from selector.files import read_bytes, write_text
from selector.learning.boosters import MOST_LEAVES_IN_ALL
from selector.learning.description import Description
from selector.serialisation import of_plain, plain_json

FORMAT_VERSION = 4
DESCRIPTION = "selector.json"
AGAIN = "copy the folder again, or fit the selector again"
DAMAGE = "damage"
BOOSTER = re.compile(r"(?P<name>damage|regret_\d{1,3})(\.[0-9a-f]{8})?\.txt")
"""Names of the boosters' files: nothing else is read. Those of a selector that replaced another
have eight digits of their digest in them."""
LARGEST_DESCRIPTION = 2**26
LARGEST_BOOSTER = 256 * MOST_LEAVES_IN_ALL
"""Bytes; LightGBM writes about 120 for a leaf."""


def write_artefact(
    folder: Path, description: Mapping[str, object], boosters: Mapping[str, str]
) -> None:
    """Write a selector, or replace the one that is there: the old or the new one is whole.

    The boosters' files of the old one stay until the new description, which names its own, has
    taken the old one's place. What an interrupted writer left is removed.

    Args:
        folder: Made where it is missing.
        description: `Description` as a dictionary.
        boosters: Names without suffix -> texts.

    Raises:
        SelectorError: A file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise SelectorError(f"{folder} cannot be made: {error}") from error
    sums = {}
    for name, text in boosters.items():
        digest, file = _digest(text), f"{name}.txt"
        if DESCRIPTION in there and file in there and not _holds(folder / file, text):
            file = f"{name}.{digest[:8]}.txt"
        write_text(folder / file, text)
        sums[file] = digest
    # Lists for tuples: the checksum is that of what is read.
    body = json.loads(json.dumps({"format_version": FORMAT_VERSION, **description}))
    body |= {"sha256": {**sums, "description": _digest(_canonical(body))}}
    write_text(folder / DESCRIPTION, json.dumps(body, indent=1) + "\n")
    for name in there - set(sums):
        if BOOSTER.fullmatch(name):
            (folder / name).unlink(missing_ok=True)


def _holds(path: Path, text: str) -> bool:
    """Whether a file holds this very text."""
    try:
        return _text(path, LARGEST_BOOSTER) == text
    except SelectorError:
        return False


def read_artefact(folder: Path) -> tuple[Description, dict[str, str]]:
    """The description and the boosters' texts of a saved selector.

    Only the files that a selector is saved in are read, and only from its folder.

    Raises:
        SelectorError: Missing, damaged, or of another format; fields that are missing, unknown, of
            another type or do not fit each other.
    """
    whole = _text(folder / DESCRIPTION, LARGEST_DESCRIPTION)
    try:
        return _read(folder, whole)
    except SelectorError:
        if _text(folder / DESCRIPTION, LARGEST_DESCRIPTION) == whole:
            raise
        # Another process has replaced the selector while its files were read.
        return _read(folder, _text(folder / DESCRIPTION, LARGEST_DESCRIPTION))


def _read(folder: Path, whole: str) -> tuple[Description, dict[str, str]]:
    body, sums = _body(folder, whole)
    files = _checked_names(folder, sums)
    texts = {name: _text(folder / file, LARGEST_BOOSTER) for name, file in files.items()}
    for name, text in texts.items():
        if _digest(text) != sums[files[name]]:
            raise SelectorError(
                f"{folder / files[name]} is damaged: its checksum does not fit; {AGAIN}"
            )
    try:
        description = of_plain(body, Description, "a description of a selector")
    except SelectorError as error:
        raise SelectorError(
            f"{folder} was not saved by this version's save: {error}; fit the selector again"
        ) from error
    return description, texts


def _body(folder: Path, whole: str) -> tuple[dict[str, object], dict[str, str]]:
    """The description as JSON, and the checksums of the boosters' files."""
    path = folder / DESCRIPTION
    try:
        body = plain_json(whole, "a description of a selector")
        if not isinstance(body, dict):
            raise TypeError(f"it holds a {type(body).__name__}")
        version = body.pop("format_version")
        sums = body.pop("sha256") if version == FORMAT_VERSION else {}
        intact = version != FORMAT_VERSION or sums.pop("description") == _digest(
            _canonical({"format_version": version, **body})
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SelectorError(
            f"{folder} is not a saved selector: {path.name}: {type(error).__name__}: {error}; "
            "name a folder that save wrote, or fit the selector again"
        ) from error
    if version != FORMAT_VERSION:
        raise SelectorError(
            f"{folder} has format {version!r:.40}, this version reads {FORMAT_VERSION}; "
            "fit the selector again"
        )
    if not intact:
        raise SelectorError(f"{path} is damaged: its checksum does not fit; {AGAIN}")
    return body, sums


def _checked_names(folder: Path, sums: Mapping[str, object]) -> dict[str, str]:
    """Booster -> its file, once it is sure that the names are those that a selector has."""
    found = {}
    for file in sums:
        known = BOOSTER.fullmatch(file)
        if known is None or known["name"] in found:
            raise SelectorError(
                f"{folder} is not a saved selector: it lists {file!r:.80}, which is none of its "
                "files; fit the selector again"
            )
        found[known["name"]] = file
    names = [DAMAGE, *(f"regret_{number}" for number in range(max(1, len(found) - 1)))]
    missing = [name for name in names if name not in found]
    if missing:
        raise SelectorError(
            f"{folder} is not a saved selector: it lists no {missing[0]}.txt; fit the selector "
            "again"
        )
    return {name: found[name] for name in (*names[1:], DAMAGE)}


def _text(path: Path, most: int) -> str:
    """The text of a regular file; byte by byte, since ends of lines must stay as they are.

    Raises:
        SelectorError: It is missing, no regular file, too large, or no text.
    """
    try:
        return read_bytes(path, most, follow=False).decode()
    except (OSError, ValueError) as error:
        raise SelectorError(
            f"{path.parent} is not a saved selector: {type(error).__name__}: {error}; name a "
            "folder that save wrote, or fit the selector again"
        ) from error


def shipped_file(name: str) -> Path:
    """A file or folder of `models/`: inside the installed package, else in the checkout.

    Raises:
        SelectorError: It is not there: a broken installation.
    """
    here = Path(__file__).resolve().parents[1]
    for root in (here / "models", here.parent / "models"):
        if (root / name).exists():
            return root / name
    raise SelectorError(f"the shipped {name!r} is missing; install saliency-selector again")


def _canonical(body: Mapping[str, object]) -> str:
    return json.dumps(body, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
