"""Checks of measured rows, before they are written and after they are read."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from selector.errors import SelectorError
from selector.records.decision import SET_ERRORS
from selector.records.measurement import CandidateRecord, GroupRecord
from selector.records.provenance import Provenance

ERRORS = tuple(
    f"{name}_error"
    for name in (
        "selection",
        "evaluation",
        "compensated_selection",
        "compensated_evaluation",
        "recalibrated",
        "selection_divergence",
        "evaluation_divergence",
    )
)


def check_measured(
    networks: Sequence[Provenance],
    groups: Sequence[GroupRecord],
    candidates: Sequence[CandidateRecord],
) -> None:
    """Make sure that rows belong together and hold numbers that can be measured.

    Raises:
        SelectorError: A network's name that is no folder's; a row without its network or group, or
            there twice; scores that are not finite or too few; a metric that was not recorded; a
            negative standard error. The row is named.
    """
    about = {provenance.network: provenance for provenance in networks}
    for provenance in networks:
        provenance.check_name()
    _check_once(((one.network,) for one in networks), "network")
    _check_once(((one.network, one.context, one.group) for one in groups), "group")
    _check_once(((c.network, c.context, c.group, c.count, c.arm) for c in candidates), "candidate")
    by_name = {(one.network, one.context, one.group): one for one in groups}
    recorded = {name: frozenset(one.metrics) for name, one in about.items()}
    for group in groups:
        _check_group(group, recorded)
    for row in candidates:
        check_candidate(row, by_name)


def _check_once(keys: Iterable[tuple[Hashable, ...]], what: str) -> None:
    seen = set()
    for key in keys:
        if key in seen:
            raise SelectorError(f"{what} {_named(key)} is there twice; keep one")
        seen.add(key)


def _check_group(group: GroupRecord, recorded: Mapping[str, frozenset[str]]) -> None:
    where = _named((group.network, group.context, group.group))
    if group.network not in recorded:
        raise SelectorError(f"group {where} belongs to no network of these records")
    for name, value in vars(group.facts).items():
        if not math.isfinite(value):
            raise SelectorError(f"{name} of group {where} is not finite; record the network again")
    for mode, pairs in group.pairs.items():
        if len(pairs.first) != group.channels or not np.isfinite(pairs.squares).all():
            raise SelectorError(
                f"{mode} pairs of group {where} must be finite numbers of {group.channels} "
                "channels; record the network again"
            )
    for metric, scores in group.scores.items():
        if recorded[group.network] and metric not in recorded[group.network]:
            raise SelectorError(
                f"group {where} has scores of {metric!r}, which the network was not recorded with"
            )
        if scores.shape != (group.channels,) or not np.isfinite(scores).all():
            raise SelectorError(
                f"scores of {metric!r} in group {where} must be {group.channels} finite numbers; "
                "record the network again"
            )


def check_candidate(
    row: CandidateRecord, groups: Mapping[tuple[str, str, str], GroupRecord]
) -> None:
    """Make sure that a candidate is one of a group that is there, and can have been measured.

    Raises:
        SelectorError: It is not; the row is named.
    """
    where = _named((row.network, row.context, row.group, row.count, row.arm))
    group = groups.get((row.network, row.context, row.group))
    if group is None:
        raise SelectorError(
            f"candidate {where} is of group {row.group!r} of {row.context!r}, which is missing"
        )
    if row.channels is not None:
        _check_set(row, group, where)
    elif row.arm not in group.scores:
        raise SelectorError(f"candidate {where} is of a metric that its group has no scores of")
    if not 1 <= row.count < group.channels:
        raise SelectorError(
            f"candidate {where} removes {row.count} of {group.channels} channels; at least one "
            "goes, and one stays"
        )
    for name in (*ERRORS, *SET_ERRORS):
        error = getattr(row, name)
        if error is not None and error < 0:
            raise SelectorError(f"{name}={error:.4g} of candidate {where} must not be negative")


def _check_set(row: CandidateRecord, group: GroupRecord, where: str) -> None:
    """Refuse a set that is none of the group's."""
    found = row.channels or ()
    fits = len(set(found)) == len(found) == row.count
    if not fits or min(found) < 0 or max(found) >= group.channels:
        raise SelectorError(
            f"candidate {where} names {len(found)} channels, which must be {row.count} different "
            f"ones of {group.channels}"
        )


def _named(key: tuple[Hashable, ...]) -> str:
    return " / ".join(f"{part}" for part in key)
