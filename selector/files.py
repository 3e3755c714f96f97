"""Files written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

from selector.errors import SelectorError


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside the target, which then takes its place.

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
