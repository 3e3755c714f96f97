"""What a command leaves behind: one document on stdout; files, checked first and written whole."""

import logging
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import typer

from selector.errors import SelectorError
from selector.records.parquet import check_versions
from selector.records.records import FILES, SCHEMA_VERSION

SELECTOR_FILE = "selector.json"
P = ParamSpec("P")

REFUSED = 2
"""Exit status of unusable input, and of a run that had to stop."""
NOTHING_REMOVED = 3
"""Exit status of a pruning that removed nothing."""


@dataclass(frozen=True)
class Printed:
    """What a command prints, where its exit status is not 0."""

    text: str
    status: int
    first: str
    """One line on stderr that says why."""


class _Stderr(logging.Handler):
    """Log lines on whatever stderr is by then."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def log_to_stderr() -> None:
    """Show the library's warnings, a line each."""
    logger = logging.getLogger("selector")
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        logger.addHandler(_Stderr(logging.WARNING))


def printed(command: Callable[P, str | Printed]) -> Callable[P, None]:
    """Print what the command returns; a `SelectorError` is one line and exit status 2.

    What a user's own code prints while it works goes to stderr, so that stdout is one document.
    """

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        log_to_stderr()
        try:
            with redirect_stdout(sys.stderr):
                found = command(*args, **kwargs)
        except SelectorError as error:
            print("error:", *str(error).split(), file=sys.stderr)
            raise typer.Exit(REFUSED) from error
        if isinstance(found, str):
            print(found)
            return
        print(found.first, file=sys.stderr)
        print(found.text)
        raise typer.Exit(found.status)

    return run


def progress_wanted() -> bool:
    """Whether someone watches: progress bars belong on a terminal only."""
    return sys.stderr.isatty()


def tell_written(*paths: Path | None) -> None:
    """Name the files that were written, on stderr."""
    for path in paths:
        if path is not None:
            print(f"wrote {path}", file=sys.stderr)


def check_files(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Make sure that files can be written, before the work that fills them.

    Raises:
        SelectorError: No such folder, a folder in the file's place, or a file named twice.
    """
    taken = {path.resolve(): "is read by this command" for path in inputs if path is not None}
    for path in outputs:
        if path is None:
            continue
        if path.is_dir():
            raise SelectorError(f"{path} is a folder; name a file in it")
        _check_parent(path)
        if path.resolve() in taken:
            raise SelectorError(f"{path} {taken[path.resolve()]}; name another file to write to")
        taken[path.resolve()] = "is named for two outputs"


def check_new_records(folder: Path, network: str) -> None:
    """Make sure that a network's records can be added to a folder.

    Raises:
        SelectorError: The network is there already, the folder cannot be written, or it holds
            records of another schema version.
    """
    _check_folder(folder)
    check_versions(folder, FILES, str(SCHEMA_VERSION))
    if (folder / network).exists():
        raise SelectorError(f"{folder / network} exists; choose another --network or --output")


def check_selector_folder(folder: Path, overwrite: bool) -> None:
    """Make sure that a selector can be saved in a folder.

    Raises:
        SelectorError: It holds other things, or a selector that was not to be overwritten.
    """
    _check_folder(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / SELECTOR_FILE).is_file():
        raise SelectorError(f"{folder} is not empty and holds no selector; choose another --output")
    if not overwrite:
        raise SelectorError(f"{folder} holds a selector; give --overwrite to replace it")


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SelectorError(f"{folder} is a file; name a folder")
    _check_parent(folder / "file" if folder.exists() else folder)


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise SelectorError(f"{path} cannot be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise SelectorError(f"{path} cannot be written: the folder {path.parent} is read-only")
