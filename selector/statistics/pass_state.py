"""What hooks must know of the pass that they watch, and of the batch at hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from torch import Tensor

from selector.statistics.statistic import Statistic, Where
from selector.statistics.taps import Held

PassStage = Literal["forward", "loss", "curvature"]


@dataclass
class PassState:
    """What the hooks must know of the pass and of the current batch."""

    statistics: Sequence[Sequence[Statistic]] = ((),)
    """What is measured beyond the moments of quantities, for each source of gradients."""
    backward: bool = False
    second_order: bool = False
    """Whether a second backward pass, of projected outputs, follows each first one."""
    stage: PassStage = "forward"
    """What runs: the network, the backward pass of its loss, or that of its projected outputs."""
    turn: int = 0
    """Which source's backward pass runs, where one forward pass serves several."""
    recomputes: bool = False
    """Whether layers ran without a gradient in a pass that needs one: reentrant checkpointing runs
    them again in the backward pass."""
    copied: set[str] = field(default_factory=set)
    """Tensors that the network overwrites in place before their gradient comes: copied first."""
    overwritten: set[str] = field(default_factory=set)
    """Such tensors found in this batch, whose sums are void: the batch must be read again."""
    curvature: dict[str, Tensor] = field(default_factory=dict)
    """Producer -> squared gradients of projected outputs, summed over images, like its weight."""
    images: int = 0
    """Of the current batch."""
    held: list[Held] = field(default_factory=list)
    """What is kept for gradients that are still to come."""
    run_again: dict[str, list[Held]] = field(default_factory=dict)
    """Calls of each measuring point in the first backward pass, in their order."""
    run_twice: dict[str, int] = field(default_factory=dict)
    """How many of them the second backward pass has come to."""

    @cached_property
    def every(self) -> list[Statistic]:
        """The statistics of all sources, each once."""
        return list(dict.fromkeys(s for of_source in self.statistics for s in of_source))

    def of_calls(self, where: Where) -> list[Statistic]:
        """The statistics that calls give at one measuring point, for all sources."""
        return [s for s in self.every if s.of == "call" and s.where == where]

    def of_gradients(self, where: Where) -> list[Statistic]:
        """The statistics that the present source's gradients give at one measuring point."""
        return [s for s in self.statistics[self.turn] if s.of == "gradient" and s.where == where]

    def waits(self, where: Where) -> bool:
        """Whether any source's gradients give statistics at one measuring point."""
        return any(s.of == "gradient" and s.where == where for s in self.every)

    @property
    def last_turn(self) -> bool:
        """Whether no other source's backward pass follows."""
        return self.turn == len(self.statistics) - 1

    @property
    def maps(self) -> bool:
        """Whether whole maps are looked at."""
        return any(statistic.whole_maps for statistic in self.every)

    def note_forgotten(self) -> None:
        """Note tensors that were written over and got no gradient.

        A linear layer's output for tokens is a view, and PyTorch forgets hooks on a view that is
        changed in place.
        """
        forgotten = (held for held in self.held if held.changed() and not held.answered)
        self.overwritten |= {held.name for held in forgotten} - self.copied

    def finish_batch(self) -> None:
        """Let go of the batch, whether or not every gradient came: hooks are cycles otherwise."""
        for held in self.held:
            held.release()
        self.held.clear()
        self.run_again.clear()
        self.run_twice.clear()
