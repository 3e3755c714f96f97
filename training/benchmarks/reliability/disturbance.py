"""A process that dies, or whose disk fills up, at a drawn call of the system or a drawn moment."""

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

How = Literal["moment", "point", "power", "full", "clock"]
"""Killed after a time; at a call; at a call, and what was not synced is lost; a call fails for want
of space; no kill, but the clock jumps by days."""
CALLS = ("open", "mkdir", "chmod", "fsync", "replace", "rename", "unlink", "rmdir")
UNSYNCED = (".lock", "lock", ".jsonl", ".worker")
"""Ends of names that nothing is read from."""


def in_fork(work: Callable[[], object], errors: Path, seconds: float | None = None) -> int:
    """Run some work in a forked process; its exit status, negative where a signal ended it.

    Args:
        work: What to do.
        errors: File for the traceback of what it raised.
        seconds: After which it is killed.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open(errors, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                try:
                    work()
                    status = 0
                except BaseException:
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def counting(work: Callable[[], object]) -> int:
    """How many calls of the system some work makes, of those that are disturbed."""
    calls = Disturbed(Path("/nonexistent"), "point", 0)
    calls.around(work)
    return calls.made


class Disturbed:
    """Calls of the system, one of which goes wrong.

    Args:
        place: Folder below which calls count.
        how: What goes wrong.
        number: Of the call, from 1.
    """

    def __init__(self, place: Path, how: How, number: int) -> None:
        self._place, self._how, self._number = place, how, number
        self._synced: set[int] = set()
        self._began = time.time()
        self.made = 0

    def around(self, work: Callable[[], object]) -> None:
        """Do some work with it."""
        whole = {name: getattr(os, name) for name in CALLS}
        clock = time.time
        try:
            for name, call in whole.items():
                setattr(os, name, self._wrapped(name, call))
            if self._how == "clock":
                time.time = self._jumping(clock)
            work()
        finally:
            for name, call in whole.items():
                setattr(os, name, call)
            time.time = clock

    def _jumping(self, clock: Callable[[], float]) -> Callable[[], float]:
        def jumping() -> float:
            self.made += 1
            return clock() + (self.made * 7919 % 11 - 5) * 86400.0

        return jumping

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._how in ("moment", "clock"):
                return call(*args, **kwargs)
            self.made += 1
            if self.made == self._number:
                self._fail()
            found = call(*args, **kwargs)
            if name == "fsync":
                self._synced.add(os.fstat(args[0]).st_ino)
            return found

        return wrapped

    def _fail(self) -> None:
        if self._how == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._how == "power":
            for path in self._place.rglob("*"):
                about = path.lstat()
                lost = about.st_ino not in self._synced and about.st_mtime >= self._began
                if path.is_file() and lost and not path.name.endswith(UNSYNCED):
                    with open(path, "wb"):
                        pass  # Its name was written, and nothing of what is in it.
        os.kill(os.getpid(), signal.SIGKILL)
