"""What a command leaves behind: one document on stdout; files, checked first and written whole."""

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from selector.errors import SelectorError
from selector.tables import printable

NOTHING_REMOVED = 3
"""Exit status of a pruning that removed nothing."""


class InterruptedRunError(Exception):
    """Ctrl-C in the midst of the work; the message says what is left, and how to go on."""


@dataclass(frozen=True)
class Printed:
    """What a command prints, where there is more to it than text on stdout."""

    text: str
    status: int = 0
    """Exit status."""
    first: str = ""
    """One line on stderr that says why the status is not 0."""


class _Lines(logging.Handler):
    """Log lines on whatever stderr is by then, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        name = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(f"{name}{printable(record.getMessage())}", file=sys.stderr)


class Terminal:
    """Where remarks and progress go: stderr, and less of both where that is asked for."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        _QUIET.set(quiet)

    @property
    def stream(self) -> TextIO:
        """Where a user's own code prints: stderr, in whole lines above a progress bar."""
        return DummyTqdmFile(sys.stderr) if progress_wanted() else sys.stderr

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Context in which the library's log is shown, a line each: remarks, then warnings."""
        logger, handler = logging.getLogger("selector"), _Lines()
        level = logger.level
        logger.setLevel(logging.WARNING if self.quiet else logging.INFO)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


@contextmanager
def remarks_from(level: int) -> Iterator[None]:
    """Context in which the library's log begins at this level, as for runs that say nothing alone.

    Args:
        level: Of `logging`; a higher one that is set already stays.
    """
    logger = logging.getLogger("selector")
    before = logger.level
    logger.setLevel(max(level, before))
    try:
        yield
    finally:
        logger.setLevel(before)


_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


def progress_wanted() -> bool:
    """Whether someone watches: progress bars belong on a terminal only."""
    return sys.stderr.isatty() and not _QUIET.get()


def remark(text: str) -> None:
    """Say something on stderr, unless the user wants it quiet."""
    if not _QUIET.get():
        tqdm.write(text, file=sys.stderr)


def tell_written(*paths: Path | None) -> None:
    """Name the files that were written, on stderr."""
    for path in paths:
        if path is not None:
            remark(f"wrote {path}")


def check_files(outputs: Iterable[Path | None], inputs: Iterable[Path | str | None]) -> None:
    """Make sure that files can be written, before the work that fills them.

    Raises:
        SelectorError: No such folder, a folder in the file's place, or a file named twice.
    """
    taken = {Path(path).resolve(): "is read by this command" for path in inputs if path is not None}
    for path in outputs:
        if path is None:
            continue
        if path.is_dir():
            raise SelectorError(f"{path} is a folder; name a file in it")
        check_parent(path)
        if path.resolve() in taken:
            raise SelectorError(f"{path} {taken[path.resolve()]}; name another file to write to")
        taken[path.resolve()] = "is named for two outputs"


def check_folder(folder: Path) -> None:
    """Make sure that a folder is there or can be made.

    Raises:
        SelectorError: A file in its place, or a folder around it that is missing or read-only.
    """
    if folder.exists() and not folder.is_dir():
        raise SelectorError(f"{folder} is a file; name a folder")
    check_parent(folder / "file" if folder.exists() else folder)


def check_parent(path: Path) -> None:
    """Make sure that the folder around a file is there and can be written to.

    Raises:
        SelectorError: It is not.
    """
    if not path.parent.is_dir():
        raise SelectorError(f"{path} cannot be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise SelectorError(f"{path} cannot be written: the folder {path.parent} is read-only")
