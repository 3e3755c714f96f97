"""Which groups keep the law: masking their channels is cutting them, on the probe batch."""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

import torch

from selector.errors import SelectorError
from selector.network.coupling.law import LawCheck, largest
from selector.network.groups import Group
from selector.network.masking import masked
from selector.network.surgery import temporarily_cut

COUNTED = "its code says how many there are"
"""What is said of a network that does not run without some of its channels."""
TOGETHER = 256
"""Groups that are first tried at once, to find out quickly that all of them keep the law."""


def broken_laws(judge: LawCheck, groups: Sequence[Group]) -> dict[str, str]:
    """Group -> why masking it is not cutting it on the probe batch; the others keep the law.

    Groups are tried several at once, far apart in the network, since most keep it; where a few
    together break it, they are halved until the culprits are alone.
    """
    parts = max(1, -(-len(groups) // TOGETHER))
    broken: dict[str, str] = {}
    for part in range(parts):
        broken |= _broken_among(judge, groups[part::parts], suspect=False)
    return broken


def _broken_among(
    judge: LawCheck, groups: Sequence[Group], *, suspect: bool = True
) -> dict[str, str]:
    """`broken_laws` of some groups; whether one of them at least is known to break the law."""
    if suspect and len(groups) < 2:
        return _broken_one_by_one(judge, groups)
    seen: Counter[int] = Counter()
    samples = []
    for group in groups:
        # Groups of one width lose different numbers: code may take the width of one for another's.
        samples.append(_samples(group, seen[group.channels])[1:])
        seen[group.channels] += 1
    trials = [list(zip(groups, channels, strict=True)) for channels in zip(*samples, strict=True)]
    if not any(_broken_by(judge, removals, alone=False) for removals in trials):
        return {}
    families = _families(groups)
    if len(families) == 1:
        first = _broken_one_by_one(judge, groups[:1])
        if first or len(groups) == 1:
            # What is wrong with one block of a network is mostly wrong with all.
            return first | _broken_one_by_one(judge, groups[1:])
        halves = [groups[: len(groups) // 2], groups[len(groups) // 2 :]]
    else:
        middle = len(families) // 2
        halves = [[g for f in part for g in f] for part in (families[:middle], families[middle:])]
    return _broken_among(judge, halves[0]) | _broken_among(judge, halves[1])


def _broken_one_by_one(judge: LawCheck, groups: Sequence[Group]) -> dict[str, str]:
    return {group.name: reason for group in groups if (reason := _broken_alone(judge, group))}


def _families(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups whose names differ by numbers alone, as those of a network's blocks do."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(re.sub(r"\d+", "#", group.name), []).append(group)
    return list(found.values())


def _broken_alone(judge: LawCheck, group: Group) -> str | None:
    alone = ([(group, channels)] for channels in dict.fromkeys(_samples(group)))
    reasons = (_broken_by(judge, removals, alone=True) for removals in alone)
    return next((reason for reason in reasons if reason is not None), None)


def _samples(group: Group, rank: int = 0) -> list[tuple[int, ...]]:
    """One channel, several, and all the others, so that no channel is let through unseen.

    They are drawn by the group's name: two groups that lose the same channels would hide that they
    depend on each other.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()))
    order = torch.randperm(group.channels, generator=generator).tolist()
    some = 1 + (max(0, int(0.4 * group.channels) - 1) + rank) % (group.channels - 1)
    return [tuple(order[:1]), tuple(order[:some]), tuple(order[some:])]


def _broken_by(
    judge: LawCheck, removals: Sequence[tuple[Group, Sequence[int]]], *, alone: bool
) -> str | None:
    """Why these removals break the law.

    Of several groups at once nothing but rounding is forgiven, since what one of them changes may
    be small; and where too little is left of the outputs, nothing could be seen.
    """
    count = sum(len(channels) for _, channels in removals)
    try:
        with temporarily_cut(judge.model, removals):
            actual = judge.outputs()
    except SelectorError:
        return "its channels pass code in which they cannot be found again after a cut"
    except Exception as error:  # Whatever the cut leads to, this group is not to be cut.
        line = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        return f"the network does not run without {count} of its channels: {COUNTED} ({line})"
    with ExitStack() as stack:
        for group, channels in removals:
            stack.enter_context(masked(judge.model, group, channels))
        expected = judge.outputs()
    if not alone and largest(expected) < 1e-6 * largest(judge.whole):
        return "too little is left of the outputs to compare them"
    gap = judge.difference(expected, actual, **({} if alone else {"share": 0.0}))
    if gap is None or gap.startswith("an output"):
        return gap
    return (
        f"masking and cutting {count} of its channels {gap}: it is coupled in a way that is not "
        "handled"
    )
