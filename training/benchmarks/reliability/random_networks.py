"""Drawn networks: what is cut must be what zeros at every reader's inputs give, or be refused."""

import copy
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import selector
from selector.errors import SelectorError
from selector.network.groups import Group
from selector.network.surgery import Cut, apply_cuts, cuts_of
from training.benchmarks.coverage.masking import masked_copy, statistics_places
from training.benchmarks.reliability.drawn_networks import drawn

COUNT, CHUNK = 2000, 20
TOLERANCE = 1e-7
"""Of outputs in double precision, over their largest."""
WHOLE_EVERY = 20
"""Every such network is pruned and repaired by `prune`, too."""


@dataclass(frozen=True)
class NetworkRun:
    """What came of some drawn networks."""

    start: int
    stop: int
    groups: int
    """That were found and cut."""
    refused: Mapping[str, int]
    """Why groups were refused -> how many."""
    none: int
    """Networks of which every group was refused."""
    wrong: tuple[str, ...]
    """Networks whose outputs are not those of the zeros, with the gap."""
    crashes: tuple[str, ...]
    """Networks with an error that is none of ours."""

    @property
    def key(self) -> tuple[object, ...]:
        """Which networks."""
        return self.start, self.stop

    @classmethod
    def parse(cls, line: dict[str, Any]) -> "NetworkRun":
        """Undo `asdict`."""
        parts = {"wrong": tuple(line["wrong"]), "crashes": tuple(line["crashes"])}
        return cls(**{**line, **parts})


def calls() -> dict[tuple[object, ...], Callable[[], NetworkRun]]:
    """All runs."""
    return {
        (start, start + CHUNK): partial(judge, start, start + CHUNK)
        for start in range(0, COUNT, CHUNK)
    }


def judge(start: int, stop: int) -> NetworkRun:
    """Cut drawn networks, and compare each with the same network with zeros in place of the cut.

    Args:
        start: Seed of the first one.
        stop: Behind the last one.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    refused: dict[str, int] = {}
    wrong, crashes, groups, none = [], [], 0, 0
    for seed in range(start, stop):
        try:
            model, images = drawn(seed)
            found = selector.find_groups(model, images)
            for why in found.refused.values():
                kind = _kind(why)
                refused[kind] = refused.get(kind, 0) + 1
            groups += len(found.prunable)
            none += not found.prunable
            if found.prunable and (gap := _gap(model, images, found.prunable, seed)) > TOLERANCE:
                wrong.append(f"{seed}: {gap:.2g}")
            if seed % WHOLE_EVERY == 0 and found.prunable:
                _prune(model, images)
        except Exception as error:  # Whatever it is, it is counted.
            crashes.append(f"{seed}: {type(error).__name__}: {error}"[:300])
    return NetworkRun(start, stop, groups, refused, none, tuple(wrong), tuple(crashes))


def _kind(why: str) -> str:
    """A reason without the names and numbers in it."""
    return re.sub(r"'[^']*'|[\w.]*\.\d[\w.]*|\d[\d.e+-]*", "_", why)[:80]


def _gap(model: nn.Module, images: Tensor, groups: Mapping[str, Group], seed: int) -> float:
    """Largest difference between the cut network and the one with zeros, over the outputs."""
    chance = torch.Generator().manual_seed(seed)
    removals = []
    for group in groups.values():
        count = int(torch.randint(1, group.channels, (1,), generator=chance))
        channels = torch.randperm(group.channels, generator=chance)[:count].tolist()
        removals.append((group, channels))
    small = copy.deepcopy(model)
    apply_cuts(small, cuts_of(removals))
    gone = {group.name: channels for group, channels in removals}
    zeros = masked_copy(model, _positions(removals), statistics_places(groups, gone))
    with torch.no_grad():
        right, found = zeros(images), small(images)
    if right.shape != found.shape:
        return float("inf")
    return float((right - found).abs().max() / right.abs().max().clamp_min(1e-12))


def _positions(removals: list[tuple[Group, list[int]]]) -> list[Cut]:
    """Where the channels lie in every layer, put together here and not by what is tested."""
    found: dict[tuple[str, str], set[int]] = {}
    for group, channels in removals:
        for part in group.slices:
            pairs = zip(part.indices, part.channels, strict=True)
            gone = {index for index, channel in pairs if channel in channels}
            found.setdefault((part.layer, part.side), set()).update(gone)
    return [Cut(layer, side, tuple(sorted(gone))) for (layer, side), gone in found.items()]


def _prune(model: nn.Module, images: Tensor) -> None:
    """Prune as a user does; what is refused by name is fine."""
    data = [(images, torch.arange(len(images)) % 5), (images.flip(0), torch.arange(4) % 5)]
    try:
        result = selector.prune(model, data, ratio=0.4, criterion="taylor", rounds=1)
    except SelectorError as error:
        if isinstance(error, selector.PruningError) and not isinstance(
            error.__cause__, SelectorError
        ):
            raise
        return
    result.model(images)
