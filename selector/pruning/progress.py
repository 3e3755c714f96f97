"""The progress bar of a pruning: which round, which step of it, how long still."""

import sys
from types import TracebackType

from tqdm import tqdm

FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"


class RoundProgress:
    """A bar that fills from 0 to 1, on the way from the unpruned network to the target.

    Args:
        rounds: As many as are planned; halved steps make more.
        shown: Whether there is a bar at all.
    """

    def __init__(self, rounds: int, *, shown: bool) -> None:
        self._rounds, self._number = rounds, 0
        self._bar = tqdm(
            total=1.0, desc="pruning", bar_format=FORMAT, disable=not shown, leave=False
        )

    def __enter__(self) -> "RoundProgress":
        """Show the bar."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it away."""
        self._bar.close()

    def begin(self, number: int) -> None:
        """Begin a round, by scoring."""
        self._number = number
        self.step("scoring")

    def step(self, name: str) -> None:
        """Begin a step of the round, or one after the last."""
        of = max(self._rounds, self._number)
        self._bar.set_description(f"round {self._number} of {of}: {name}")

    def advance(self, share: float) -> None:
        """Go on by a share of the whole way."""
        self._bar.update(min(share, 1.0 - self._bar.n))


def say_above(text: str) -> None:
    """Write a line on stderr, above a bar if there is one."""
    tqdm.write(text, file=sys.stderr)
