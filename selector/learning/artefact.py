"""A selector as a folder: boosters as LightGBM text, the rest as JSON, with checksums."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selector.errors import SelectorError
from selector.files import write_text

FORMAT_VERSION = 3
DESCRIPTION = "selector.json"
AGAIN = "copy the folder again, or fit the selector again"
_DESCRIBED = (
    "parameters",
    "arms",
    "metrics",
    "features",
    "single_best",
    "networks",
    "damage_weight",
    "intervals",
    "joint_errors",
    "familiar",
)


def write_artefact(
    folder: Path, description: Mapping[str, object], boosters: Mapping[str, str]
) -> None:
    """Write the boosters' texts, then the description, so that a folder with it is whole.

    Raises:
        SelectorError: A file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SelectorError(f"{folder} cannot be made: {error}") from error
    for name, text in boosters.items():
        write_text(folder / f"{name}.txt", text)
    body = {"format_version": FORMAT_VERSION, **description}
    sums = {f"{name}.txt": _digest(text) for name, text in boosters.items()}
    body |= {"sha256": {**sums, "description": _digest(_canonical(body))}}
    write_text(folder / DESCRIPTION, json.dumps(body, indent=1) + "\n")


def read_artefact(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The description and the boosters' texts of a saved selector.

    Raises:
        SelectorError: Missing, damaged, or of another format.
    """
    try:
        body = json.loads((folder / DESCRIPTION).read_text())
        version = body["format_version"]
        if version == FORMAT_VERSION:
            missing = [key for key in _DESCRIBED if key not in body]
            if missing:
                raise KeyError(missing[0])
            sums = dict(body.pop("sha256"))
            if _digest(_canonical(body)) != sums.pop("description"):
                raise SelectorError(
                    f"{folder / DESCRIPTION} is damaged: its checksum does not fit; {AGAIN}"
                )
            # Byte by byte: reading as text would take one end of a line for another.
            texts = {name: (folder / name).read_bytes().decode() for name in sums}
            for needed in ("damage.txt", "regret_0.txt"):
                if needed not in texts:
                    raise KeyError(needed)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, SelectorError):
            raise
        raise SelectorError(
            f"{folder} is not a saved selector: {type(error).__name__}: {error}; name a folder "
            "that save wrote, or fit the selector again"
        ) from error
    if version != FORMAT_VERSION:
        raise SelectorError(
            f"{folder} has format {version}, this version reads {FORMAT_VERSION}; "
            "fit the selector again"
        )
    for name, text in texts.items():
        if _digest(text) != sums[name]:
            raise SelectorError(f"{folder / name} is damaged: its checksum does not fit; {AGAIN}")
    return body, {name.removesuffix(".txt"): text for name, text in texts.items()}


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
