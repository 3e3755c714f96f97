"""The state of a pruning beside its output, so that the same command goes on after Ctrl-C."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from selector.cli.outputs import InterruptedRunError, remark
from selector.files import write_text

COMMAND = "command.json"


class StateFolder:
    """Where a command keeps its state; next to the output unless a folder was named.

    Args:
        named: The folder that the user named, which is kept; or None.
        output: The file that the command will write, or None.
        asked: What was typed, by option: the state of another command is not gone on from.
    """

    def __init__(
        self, named: Path | None, output: Path | None, asked: Mapping[str, object]
    ) -> None:
        self.named = named
        beside = None if output is None else output.with_name(f"{output.name}.state")
        self.path: Path | None = named or beside
        """The folder; None where there is nowhere to keep a state."""
        self._asked = json.dumps(asked, default=str, sort_keys=True)

    def prepare(self) -> None:
        """Take the state of another command away, and remember this one."""
        if self.named is not None or self.path is None:
            return
        note = self.path / COMMAND
        if self.path.exists() and (not note.exists() or note.read_text() != self._asked):
            remark(f"{self.path} held the state of another command, and is begun again")
            shutil.rmtree(self.path, ignore_errors=True)
        elif self.path.exists():
            remark(f"going on from {self.path}")
        self.path.mkdir(exist_ok=True)
        write_text(note, self._asked)

    def done(self) -> None:
        """Take the state away: the command has written what it was asked for."""
        if self.named is None and self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)

    def tidy(self) -> None:
        """Take the state away where it holds nothing to go on from."""
        if not self.holds_rounds:
            self.done()

    @contextmanager
    def resumable(self) -> Iterator[Path | None]:
        """Context that keeps a state in the folder until the work is done.

        Raises:
            InterruptedRunError: After Ctrl-C.
        """
        self.prepare()
        try:
            yield self.path
        except KeyboardInterrupt:
            raise self.interrupted("midway") from None
        except BaseException:
            if self.holds_rounds:
                remark(self.way_on)
            raise
        finally:
            self.tidy()
        self.done()

    @property
    def holds_rounds(self) -> bool:
        """Whether there is something to go on from."""
        return self.path is not None and any(
            one.suffix == ".safetensors" or one.name.endswith(".kept.json")
            for one in self.path.rglob("*")
        )

    @property
    def way_on(self) -> str:
        """How to go on after the run was stopped."""
        if self.path is None:
            return "with --output or --checkpoint, the same command could go on from here"
        return f"the state is in {self.path}: give the same command to go on"

    def interrupted(self, when: str) -> InterruptedRunError:
        """What to say after Ctrl-C."""
        way_on = self.way_on if self.path is None or self.holds_rounds else "nothing was written"
        return InterruptedRunError(f"stopped by Ctrl-C {when}; {way_on}")
