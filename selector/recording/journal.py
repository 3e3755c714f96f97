"""What is measured of a network, kept group by group until its records are whole."""

import json
from dataclasses import asdict
from pathlib import Path

from selector.errors import SelectorError
from selector.files import write_text
from selector.records.measurement import CandidateRecord

FINGERPRINT = "fingerprint"
"""File that says what the measurements belong to."""


class Journal:
    """What is measured of a network, kept group by group until all of it is there."""

    def __init__(self, folder: Path | None, name: str, fingerprint: str) -> None:
        """Open the journal of one recording, or begin it.

        Args:
            folder: Where journals lie; None keeps nothing.
            name: Of this recording.
            fingerprint: Of the network, the data and the options.

        Raises:
            SelectorError: It holds measurements of another network, other data or other options.
        """
        self._folder = None if folder is None else folder / name
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        mark = self._folder / FINGERPRINT
        if not mark.exists():
            if any(self._folder.glob("*.json")):
                raise SelectorError(_other(self._folder))
            write_text(mark, fingerprint)
        elif mark.read_text() != fingerprint:
            raise SelectorError(_other(self._folder))

    def kept(self, context: str, group: str) -> list[CandidateRecord]:
        """What was measured before, or nothing."""
        path = self._path(context, group)
        if path is None or not path.exists():
            return []
        return [CandidateRecord(**row) for row in json.loads(path.read_text())]

    def keep(self, context: str, group: str, rows: list[CandidateRecord]) -> list[CandidateRecord]:
        """Write down what was measured, whole or not at all."""
        path = self._path(context, group)
        if path is not None:
            write_text(path, json.dumps([asdict(row) for row in rows]))
        return rows

    def close(self) -> None:
        """Forget the journal: the records are whole."""
        if self._folder is not None:
            for path in self._folder.glob("*.json"):
                path.unlink()
            (self._folder / FINGERPRINT).unlink()
            self._folder.rmdir()

    def _path(self, context: str, group: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{context}--{group}.json"


def _other(folder: Path) -> str:
    return (
        f"the journal {folder} holds measurements of another network, other data, another loss or "
        "other options; pass another journal folder, or delete this one to begin again"
    )
