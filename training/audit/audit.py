"""Every decision of the records judged at once: how sure its labels are, how every arm does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from selector.errors import SelectorError
from selector.learning.evaluation import Grid
from selector.learning.regret import CAP, regrets
from selector.learning.table import names_of
from selector.recording.contexts import UNPRUNED
from selector.records.measurement import CandidateRecord, GroupRecord
from selector.records.provenance import Provenance
from selector.records.records import Records
from selector.typing import Matrix

STEPS = (0.1, 0.3)
"""Shares of a group's channels that part small steps, middle ones and large ones."""
STATES = (0.7,)
"""Shares of the MACs left that part the pruned states."""


@dataclass(frozen=True, eq=False)
class Audit:
    """All decisions, one row each; regrets are normalised and capped at 3."""

    arms: Sequence[str]
    labels: Mapping[str, "npt.NDArray[np.str_]"]
    """Property of decisions -> the value of each."""
    agreement: Matrix
    """Rank correlation of the two splits over distinct candidates; NaN below three."""
    compensated_agreement: Matrix
    """The same of compensated removal; NaN where that was not measured."""
    both: Matrix
    """(decisions, arms): regret on both splits together, NaN where the arm does not apply."""
    evaluation: Matrix
    """(decisions, arms): regret on the evaluation split."""
    vbs: Matrix
    """Regret, on the evaluation split, of the arm that was best on the selection split."""
    winner: "npt.NDArray[np.intp]"
    """Arm with the lowest loss change, both splits together; the first of equals."""
    grid: Grid
    """What is learnt of every arm, in nats."""
    errors: Matrix
    """Standard errors of the means of both splits, (decisions, arms)."""

    def sbs(self) -> tuple[Matrix, "npt.NDArray[np.intp]"]:
        """Of every decision, the regret and the number of the arm that is best elsewhere."""
        families = self.labels["family"]
        best = np.zeros(len(families), np.intp)
        for family in np.unique(families):
            outside = families != family
            learnt = self.both[outside if outside.any() else ~outside]
            always = ~np.isnan(self.both).any(0)
            if not always.any():
                raise SelectorError("no arm was measured in every decision; record with all")
            best[families == family] = np.argmin(np.where(always, learnt.mean(0), np.inf))
        return self.evaluation[np.arange(len(best)), best], best


def _labels(group: GroupRecord, about: Provenance, count: int) -> dict[str, str]:
    kept = group.state.macs_kept
    return {
        "family": about.family,
        "data set": about.dataset,
        "channels": _part(count / group.channels, STEPS, "gone"),
        "state": UNPRUNED if group.context == UNPRUNED else _part(kept, STATES, "of MACs left"),
    }


def _part(share: float, bounds: Sequence[float], what: str) -> str:
    edges = (0.0, *bounds, 1.0)
    place = int(np.searchsorted(bounds, share, side="right"))
    return f"{edges[place]:.0%} to {edges[place + 1]:.0%} {what}"


def judge(records: Records) -> Audit:
    """Every decision of the records: how sure its labels are, and how every arm does."""
    arms = names_of(records)[0]
    about = {p.network: p for p in records.networks}
    labels: list[dict[str, str]] = []
    lines: list[Matrix] = []
    for group, _, rows in records.decisions():
        labels.append(_labels(group, about[group.network], rows[0].count))
        lines.append(_line(rows, arms))
    table = np.stack(lines, 1)
    selection, evaluation, kept_selection, kept_evaluation, again, errors = table
    nats = (selection + evaluation) / 2
    judged = np.minimum(regrets(evaluation), CAP)
    chosen = np.nanargmin(selection, 1)
    first = again == 0
    return Audit(
        arms,
        {key: np.array([one[key] for one in labels]) for key in labels[0]},
        _agreement(selection, evaluation, first),
        _agreement(kept_selection, kept_evaluation, first),
        np.minimum(regrets(nats), CAP),
        judged,
        judged[np.arange(len(judged)), chosen],
        np.nanargmin(nats, 1),
        Grid(selection, evaluation),
        errors,
    )


def _line(rows: Sequence[CandidateRecord], arms: Sequence[str]) -> Matrix:
    """A decision's numbers, shape (6, arms).

    What is learnt and compensated loss changes, on both splits; whether a set stands before; the
    standard error of what is learnt.
    """
    line = np.full((6, len(arms)), np.nan)
    place = {arm: number for number, arm in enumerate(arms)}
    seen: set[int] = set()
    for row in rows:
        if row.arm in place:
            line[:, place[row.arm]] = [
                *row.label,
                _number(row.compensated_selection_nats),
                _number(row.compensated_evaluation_nats),
                float(row.set_id in seen),
                row.label_error,
            ]
            seen.add(row.set_id)
    return line


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _agreement(one: Matrix, other: Matrix, where: "npt.NDArray[np.bool_]") -> Matrix:
    """Rank correlation along the last axis over what is there; NaN below three values."""
    there = where & ~np.isnan(one) & ~np.isnan(other)
    ranks = [_ranks(np.where(there, table, np.nan)) for table in (one, other)]
    number = there.sum(-1)
    centred = [np.where(there, r - (number[..., None] - 1) / 2, 0.0) for r in ranks]
    product, *lengths = (
        (a * b).sum(-1)
        for a, b in ((centred[0], centred[1]), (centred[0], centred[0]), (centred[1], centred[1]))
    )
    length = np.sqrt(lengths[0] * lengths[1])
    known = (number > 2) & (length > 0)
    found: Matrix = np.divide(product, length, out=np.full(len(one), np.nan), where=known)
    return found


def _ranks(table: Matrix) -> Matrix:
    """Ranks from 0 along the last axis, the mean of them for equals; NaN stays out."""
    mine, theirs = table[..., :, None], table[..., None, :]
    below: Matrix = (theirs < mine).sum(-1) + ((theirs == mine).sum(-1) - 1) / 2
    return below


def correlations(records: Records, arms: Sequence[str]) -> Matrix:
    """Mean rank correlation of the arms' scores within a group, (arms, arms)."""
    total, number = np.zeros((len(arms), len(arms))), np.zeros((len(arms), len(arms)))
    for group in records.groups:
        if group.channels < 3:
            continue
        absent = np.full(group.channels, np.nan)
        table = np.stack([group.scores.get(arm, absent) for arm in arms])
        ranks = rankdata(table, axis=1)
        ranks -= ranks.mean(1, keepdims=True)
        length = np.sqrt(np.square(ranks).sum(1))
        known = (length > 0) & ~np.isnan(table).any(1)
        ranks = np.where(known[:, None], ranks / np.where(known, length, 1.0)[:, None], 0.0)
        total += ranks @ ranks.T
        number += np.outer(known, known)
    mean: Matrix = np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)
    return mean
