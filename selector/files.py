"""Files that are written whole or not at all, and read within bounds."""

import errno
import hashlib
import os
import re
import secrets
import socket
import stat
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from selector.errors import SelectorError

LARGEST_TEXT = 2**28
"""Bytes of a text that is read."""
LONGEST_STEM = 40
LONGEST_NAME = 200
"""Characters of a file's name that is made of another name."""
REMAINS = re.compile(r"\.(?P<stem>.*)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d{1,9})-[0-9a-f]{8}\.partial")
A_DAY = 86400.0


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file next to the target, which then takes its place.

    What was there stays until the new file is on the disk: a reader finds the old or the new one,
    after a power failure, too. What killed writers of the same file left behind is removed.

    Raises:
        SelectorError: The file cannot be written, or is a pipe or a device.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            raise OSError("it is no regular file; name another one")
        forget_remains(target)
        partial = partial_of(target)
        mode = _create(partial)
    except (OSError, ValueError) as error:
        raise SelectorError(f"{target} cannot be written: {error}") from error
    try:
        write(partial)
        os.chmod(partial, mode)
        sync(partial)
        os.replace(partial, target)
        sync(target.parent)
    except OSError as error:
        raise SelectorError(f"{target} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _create(path: Path) -> int:
    """Make an empty file; its mode, which is what the umask says."""
    with open(path, "xb") as file:
        return stat.S_IMODE(os.fstat(file.fileno()).st_mode)


def partial_of(target: Path) -> Path:
    """A new name next to the target, for what will be it; it tells who writes there."""
    stem = target.name[:LONGEST_STEM]
    return target.with_name(f".{stem}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial")


def forget_remains(target: Path) -> None:
    """Remove what writers of the target that are gone have left next to it."""
    for path in remains_of(target):
        if path.is_dir():
            for file in path.iterdir():
                file.unlink(missing_ok=True)
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


def remains_of(target: Path) -> list[Path]:
    """What writers of the target that are gone have left: dead ones here, or a day ago."""
    if not target.parent.is_dir():
        return []
    stem = target.name[:LONGEST_STEM]
    return [
        target.with_name(name)
        for name in os.listdir(target.parent)
        if name.endswith(".partial")
        and (found := REMAINS.fullmatch(name)) is not None
        and found["stem"] == stem
        and _is_left(target.with_name(name), found["host"], int(found["pid"]))
    ]


def _is_left(path: Path, host: str, pid: int) -> bool:
    try:
        if time.time() - path.lstat().st_mtime > A_DAY:
            return True
        if host != _host():
            return False
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # Gone meanwhile, or a process of somebody else.
        return False
    return False


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk.

    Raises:
        OSError: It cannot be written.
    """
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders, and keeps the order of renamings itself.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # Not every file system can.
            raise
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write text, whole or not at all.

    Raises:
        SelectorError: The file cannot be written.
    """
    content = text.encode(errors="backslashreplace")
    write_whole(path, lambda partial: partial.write_bytes(content))


def read_text(path: str | Path, what: str) -> str:
    """Read text.

    Args:
        path: The file.
        what: What it is to hold, for the message.

    Raises:
        SelectorError: No such file, a pipe or a device, no text in it, or too much.
    """
    try:
        return read_bytes(Path(path)).decode()
    except (OSError, ValueError) as error:
        raise SelectorError(f"{what} {path} cannot be read: {error}") from error


def read_bytes(path: Path, most: int = LARGEST_TEXT, *, follow: bool = True) -> bytes:
    """The content of a regular file; a pipe or a device would give no end of it.

    Args:
        path: The file.
        most: Bytes that it may have.
        follow: Whether a link may stand in its place.

    Raises:
        OSError: It is no regular file, or larger.
        ValueError: The path is none.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_BINARY", 0) | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    if not follow and path.is_symlink():
        raise OSError(f"{path.name} is not a regular file; copy the file itself to its place")
    with open(os.open(path, flags), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(f"{path.name} is not a regular file; copy the file itself to its place")
        if about.st_size > most:
            raise OSError(f"{path.name} has {about.st_size} bytes, and {most} are the most")
        return file.read(most)


def file_name(name: str) -> str:
    """A name as that of a file: letters, digits and `_.-~` stay, a long one ends in its digest.

    >>> file_name("layer1.conv2"), file_name("a/b")
    ('layer1.conv2', 'a%2Fb')
    """
    found = quote(name, safe="", errors="backslashreplace")
    if len(found) <= LONGEST_NAME:
        return found
    digest = hashlib.sha256(found.encode()).hexdigest()[:16]
    return f"{found[: LONGEST_NAME - 17]}~{digest}"
