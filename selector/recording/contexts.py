"""The states in which a network is recorded: unpruned, and pruned before by some metric."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from selector.data.calibration import Calibration
from selector.errors import SelectorError
from selector.network.tracing import Groups
from selector.planning.limits import Widths
from selector.pruning.prune import prune
from selector.saliency.proposals.registry import PROPOSALS
from selector.saliency.registry import arms, find_metric

UNPRUNED = "unpruned"
SMALL_STEPS = (0.02, 0.25)
"""Shares of the remaining channels that pruning in rounds takes at once: most decisions."""
LARGE_STEPS = (0.25, 0.75)
SECOND_SHARE, LARGE_SHARE, SINGLE_SHARE = 0.5, 0.35, 0.35
"""How often a group is tried at a second small step, at a large one, and with a single channel."""
SELECTOR = "selector"
ROUNDS = 2
MACS_LEFT = (0.4, 0.9)
MAX_RATIO = 0.9
MARGIN = 0.05
"""Above the smallest reachable share, where the last channels of every group would go."""


@dataclass(frozen=True)
class PrunedContext:
    """A state that pruning by one criterion leaves, repaired."""

    metric: str
    """A metric, a proposal of sets, or `selector`."""
    keep_macs: float
    """Share of the network's multiply-accumulates that is left."""

    def __post_init__(self) -> None:
        """Refuse what cannot be pruned by."""
        if self.metric != SELECTOR and self.metric not in PROPOSALS:
            find_metric(self.metric)
        if not 0 < self.keep_macs < 1:
            raise SelectorError(f"keep_macs={self.keep_macs} of a context must lie between 0 and 1")

    @property
    def name(self) -> str:
        """As it stands in the records: the share with two digits, or as many as it has."""
        share = f"{self.keep_macs:.2f}"
        return f"{self.metric}-{share if float(share) == self.keep_macs else self.keep_macs}"

    def reached(self, model: nn.Module, calibration: Calibration) -> nn.Module:
        """A copy of the network in this state."""
        result = prune(
            model,
            calibration,
            criterion=self.metric,
            keep_macs=self.keep_macs,
            rounds=ROUNDS,
            recalibrate=True,
            loss=calibration.loss,
        )
        return result.model


def check_distinct(contexts: Sequence[PrunedContext]) -> None:
    """Make sure that no state is recorded twice.

    Raises:
        SelectorError: Two contexts have one name.
    """
    names = [context.name for context in contexts]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise SelectorError(f"contexts name {twice[0]!r} twice; leave one of them out")


def least_macs(groups: Groups) -> float:
    """Share of the multiply-accumulates that is left when every group lost all that it may."""
    widths = Widths.of(groups.prunable, MAX_RATIO, 1)
    most = {group: widths.options(group)[-1] for group in groups.prunable.values()}
    return groups.costs.total("macs", most) / groups.costs.total("macs")


def draw_contexts(
    count: int,
    generator: torch.Generator,
    least: float = 0.0,
    *,
    criteria: Sequence[str] | None = None,
) -> tuple[PrunedContext, ...]:
    """Pruned states by different criteria, with 40 to 90 % of the MACs left, spread evenly.

    Args:
        count: How many; none where the network cannot be pruned that far.
        generator: Source of chance.
        least: `least_macs`: where 40 % cannot be reached, the range ends above this.
        criteria: What they are pruned by; the arms by default.
    """
    lowest = max(MACS_LEFT[0], least + MARGIN)
    if lowest >= MACS_LEFT[1]:
        return ()
    names = arms() if criteria is None else list(criteria)
    order = torch.randperm(len(names), generator=generator).tolist()
    found = []
    for number in range(count):
        # One from each of as many equal parts of the range.
        place = (number + float(torch.rand((), generator=generator))) / count
        found.append(
            PrunedContext(
                names[order[number % len(names)]],
                round(MACS_LEFT[1] - (MACS_LEFT[1] - lowest) * place, 2),
            )
        )
    return tuple(dict.fromkeys(found))


def draw_counts(channels: int, generator: torch.Generator) -> list[int]:
    """How many channels are tried of a group: a small step, at times others too.

    Args:
        channels: Channels of the group, at least two.
        generator: Source of chance.
    """
    low, high = (math.log(share) for share in SMALL_STEPS)
    chance = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    small, other, many, large, one = chance
    shares = [math.exp(low + (high - low) * small)]
    if other < SECOND_SHARE:
        shares.append(math.exp(low + (high - low) * other / SECOND_SHARE))
    if many < LARGE_SHARE:
        shares.append(LARGE_STEPS[0] + (LARGE_STEPS[1] - LARGE_STEPS[0]) * large)
    if one < SINGLE_SHARE:
        shares.append(0.0)
    return counts_of(channels, shares)


def counts_of(channels: int, shares: Sequence[float]) -> list[int]:
    """Shares of a group's channels as whole numbers: at least one goes, at least one stays."""
    return sorted({min(channels - 1, max(1, round(share * channels))) for share in shares})
