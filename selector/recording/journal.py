"""What is measured of a network, kept group by group until its records are saved."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from selector.errors import SelectorError
from selector.files import file_name, forget_remains, read_text, write_text
from selector.records.checks import check_candidate
from selector.records.measurement import CandidateRecord, GroupRecord
from selector.serialisation import of_json

FINGERPRINT = "fingerprint"
"""File that says what the measurements belong to."""
LOCK = "lock"
WHAT = "measurements of one group"


class InUseError(SelectorError):
    """Another process is at the same recording."""


class Journal:
    """What is measured of a network, kept group by group until all of it is saved.

    Args:
        folder: Where journals lie; None keeps nothing.
        name: Of this recording.
        fingerprint: Of the network, the data and the options.

    Raises:
        SelectorError: The folder cannot be written.
    """

    def __init__(self, folder: Path | None, name: str, fingerprint: str) -> None:
        self._folder = None if folder is None else folder / name
        self._fingerprint, self._closed = fingerprint, False
        self.resumed = False
        """Whether the recording was begun before, by another call."""
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SelectorError(f"journal={str(folder)!r} cannot be made: {error}") from error

    @contextmanager
    def opened(self) -> Iterator["Journal"]:
        """Context in which no other process is at the same recording.

        Raises:
            InUseError: One is.
            SelectorError: It holds measurements of another network, other data or other options,
                or cannot be written.
        """
        if self._folder is None:
            yield self
            return
        lock = FileLock(self._folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise InUseError(
                f"another process records into the journal {self._folder}; wait for it, or name "
                "another journal"
            ) from None
        except OSError as error:
            raise SelectorError(f"the journal {self._folder} cannot be written: {error}") from error
        try:
            self._check_mark(self._folder)
            yield self
        finally:
            if self._closed and os.name != "nt":
                # While it is held: whoever waits for it finds that it is gone.
                (self._folder / LOCK).unlink(missing_ok=True)
            lock.release()
        if self._closed:
            with suppress(OSError):  # Somebody else may have begun anew.
                (self._folder / LOCK).unlink(missing_ok=True)
                self._folder.rmdir()

    def _check_mark(self, folder: Path) -> None:
        mark = folder / FINGERPRINT
        if not mark.exists():
            if any(folder.glob("*.json")):
                raise SelectorError(_other(folder))
            write_text(mark, self._fingerprint)
        elif read_text(mark, "the journal's mark") != self._fingerprint:
            raise SelectorError(_other(folder))
        else:
            self.resumed = True

    def kept(self, group: GroupRecord) -> list[CandidateRecord]:
        """What was measured before of a group, or nothing.

        Raises:
            SelectorError: A file that is damaged, or holds what cannot have been measured of it.
        """
        path = self._path(group.context, group.group)
        if path is None or not path.exists():
            return []
        try:
            rows = of_json(
                read_text(path, "the journal"), tuple[CandidateRecord, ...], WHAT, finite=False
            )
            for row in rows:
                check_candidate(row, {(group.network, group.context, group.group): group})
        except SelectorError as error:
            raise SelectorError(
                f"{path} is damaged ({error}); delete this file to measure its group again"
            ) from error
        return list(rows)

    def keep(self, context: str, group: str, rows: list[CandidateRecord]) -> list[CandidateRecord]:
        """Write down what was measured, whole or not at all."""
        path = self._path(context, group)
        if path is not None:
            write_text(path, json.dumps([asdict(row) for row in rows]))
        return rows

    def close(self) -> None:
        """Forget the journal: the records are saved.

        Raises:
            SelectorError: A file cannot be removed.
        """
        if self._folder is None:
            return
        try:
            for path in self._folder.glob("*.json"):
                path.unlink()
                forget_remains(path)
            # The mark goes last: without it, measurements would belong to nothing.
            (self._folder / FINGERPRINT).unlink()
            self._closed = True
        except OSError as error:
            raise SelectorError(
                f"the journal {self._folder} cannot be removed: {error}; the records are saved"
            ) from error

    def _path(self, context: str, group: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{file_name(f'{context}--{group}')}.json"


def _other(folder: Path) -> str:
    return (
        f"the journal {folder} holds measurements of another network, other data, another loss or "
        "other options; pass another journal folder, or delete this one to begin again"
    )
