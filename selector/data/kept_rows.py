"""Rows of a long measurement in a folder, one file each: a run that was stopped goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selector.errors import SelectorError
from selector.files import write_text


class KeptRows:
    """What is measured so far, by name.

    Args:
        folder: Made where it is missing; None to keep nothing.
        fingerprint: Of the network, the data and the options; see `data/fingerprint.py`.

    Raises:
        SelectorError: The folder cannot be made.
    """

    def __init__(self, folder: str | Path | None, fingerprint: str) -> None:
        self.folder = None if folder is None else Path(folder)
        self._fingerprint = fingerprint
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SelectorError(
                    f"checkpoint={str(folder)!r} cannot be made: {error}"
                ) from error

    def load(self, name: str) -> Any | None:
        """What was kept under a name; None where nothing was, or it belongs to something else."""
        if self.folder is None:
            return None
        try:
            found = json.loads(self._file(name).read_text(encoding="utf-8"))
            return found["kept"] if found["fingerprint"] == self._fingerprint else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # Not there, or torn: it is measured again.

    def save(self, name: str, kept: Mapping[str, Any] | list[Any]) -> None:
        """Keep something, whole or not at all.

        Raises:
            SelectorError: The file cannot be written.
        """
        if self.folder is not None:
            text = json.dumps({"fingerprint": self._fingerprint, "name": name, "kept": kept})
            write_text(self._file(name), text)

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{''.join(c if c.isalnum() else '_' for c in name)}.kept.json"
