"""What can be learnt from the records at all? Noise, near-copies, headroom, and who wins.

Split-half agreement (rank correlation of the two splits within a decision), rank correlation of the
arms' scores, mean normalised regret of the single best arm (SBS), of the oracle (VBS, chosen on the
selection split and judged on the other) and of the median arm, by family, size of step and state.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from scipy.stats import spearmanr

from selector.features import normalised
from selector.learning import CAP, single_best
from selector.pairs import Matrix
from selector.records import CandidateRecord, GroupRecord, Records
from selector.saliency import find_metric, known_metrics
from selector.tables import text_table
from training.benchmarks.results_file import RESULTS, write_result

mpl.use("Agg")
from matplotlib import pyplot as plt

NEAR_COPY = 0.95
STEPS = ((0.0, 0.1), (0.1, 0.3), (0.3, 1.0))
"""Shares of a group's channels, from, up to."""


@dataclass(frozen=True, eq=False)
class Judged:
    """One decision: who would have been chosen, and at what normalised regret (capped at 3)."""

    group: GroupRecord
    family: str
    share: float
    """Of the group's channels that go."""
    agreement: float
    """Rank correlation of the two splits over distinct candidates; NaN below three."""
    regret: Mapping[str, float]
    """Arm -> regret on the evaluation split."""
    vbs: float
    winner: str
    """Arm with the lowest loss change, both splits together; the first of equals."""


def run(data: Path, name: str = "records") -> None:
    """Audit the records of a folder, print the tables, write `results/NAME.json` and plots."""
    records = Records.load(data)
    arms = [a for a in known_metrics({r.arm for r in records.candidates}) if find_metric(a).arm]
    best = single_best(records, arms)
    judged = list(_judged(records, arms))
    rows = [_row("all", judged, best)]
    for label, key in _GROUPINGS.items():
        parts: dict[str, list[Judged]] = defaultdict(list)
        for decision in judged:
            parts[key(decision)].append(decision)
        rows += [_row(f"{label}: {part}", parts[part], best) for part in sorted(parts)]
    print(text_table(list(rows[0]), [[_cell(v) for v in row.values()] for row in rows]))
    wins = _wins(judged, arms)
    copies = _correlations(records, arms)
    near = [
        f"{a} ~ {b} {copies[i, j]:.2f}"
        for i, a in enumerate(arms)
        for j, b in enumerate(arms)
        if i < j and copies[i, j] > NEAR_COPY
    ]
    print(text_table(["arm", "wins"], [[arm, f"{share:.1%}"] for arm, share in wins.items()]))
    print(f"single best: {best}; near-copies: {', '.join(near) or 'none'}")
    _plot(name, arms, copies, wins, rows)
    summary = {
        "networks": float(len(records.networks)),
        "families": float(len({p.family for p in records.networks})),
        "datasets": float(len({p.dataset for p in records.networks})),
        "candidates": float(len(records.candidates)),
        "decisions": float(len(judged)),
        "split_half_correlation": float(np.nanmean([d.agreement for d in judged])),
        "sbs_normalised_regret": float(str(rows[0]["SBS"])),
        "vbs_normalised_regret": float(str(rows[0]["VBS"])),
        "median_normalised_regret": float(str(rows[0]["median arm"])),
        "near_copies": float(len(near)),
    }
    shares: list[Mapping[str, object]] = [{"arm": a, "wins": share} for a, share in wins.items()]
    print(write_result(name, summary, [*rows, *shares]))


def _step(decision: Judged) -> str:
    low, high = next((a, b) for a, b in STEPS if a <= decision.share < b)
    return f"{low:.0%} to {high:.0%}"


_GROUPINGS: Mapping[str, Callable[[Judged], str]] = {
    "family": lambda d: d.family,
    "channels": _step,
    "state": lambda d: "unpruned" if d.group.context == "unpruned" else "pruned",
}


def _judged(records: Records, arms: Sequence[str]) -> list[Judged]:
    families = {p.network: p.family for p in records.networks}
    found = []
    for group, _, rows in records.decisions():
        known = [row for row in rows if row.arm in arms]
        regrets = np.minimum(normalised(np.array([r.evaluation_nats for r in known])), CAP)
        chosen = int(np.argmin([row.selection_nats for row in known]))
        found.append(
            Judged(
                group,
                families[group.network],
                known[0].count / group.channels,
                _agreement(known),
                {row.arm: float(r) for row, r in zip(known, regrets, strict=True)},
                float(regrets[chosen]),
                min(known, key=lambda row: row.nats).arm,
            )
        )
    return found


def _agreement(rows: Sequence[CandidateRecord]) -> float:
    distinct = list({row.set_id: row for row in rows}.values())
    if len(distinct) < 3:
        return float("nan")
    halves = [[r.selection_nats for r in distinct], [r.evaluation_nats for r in distinct]]
    return float(spearmanr(*halves).statistic)


def _row(label: str, decisions: Sequence[Judged], best: str) -> dict[str, object]:
    sbs = float(np.mean([d.regret[best] for d in decisions]))
    vbs = float(np.mean([d.vbs for d in decisions]))
    return {
        "decisions of": label,
        "number": len(decisions),
        "split-half": round(float(np.nanmean([d.agreement for d in decisions])), 4),
        "SBS": round(sbs, 4),
        "VBS": round(vbs, 4),
        "median arm": round(
            float(np.mean([np.median(list(d.regret.values())) for d in decisions])), 4
        ),
        "headroom": round(sbs - vbs, 4),
    }


def _wins(decisions: Sequence[Judged], arms: Sequence[str]) -> dict[str, float]:
    count = {arm: sum(d.winner == arm for d in decisions) / len(decisions) for arm in arms}
    return dict(sorted(count.items(), key=lambda item: -item[1]))


def _correlations(records: Records, arms: Sequence[str]) -> Matrix:
    """Mean rank correlation of the arms' scores within a group, (arms, arms)."""
    tables = []
    for group in records.groups:
        columns = [group.scores.get(arm, np.full(group.channels, np.nan)) for arm in arms]
        table = np.full((len(arms), len(arms)), np.nan)
        for i, one in enumerate(columns):
            for j, other in enumerate(columns):
                if group.channels > 2 and np.ptp(one) > 0 and np.ptp(other) > 0:
                    table[i, j] = spearmanr(one, other).statistic
        tables.append(table)
    mean: Matrix = np.nanmean(np.stack(tables), 0)
    return mean


def _plot(
    name: str,
    arms: Sequence[str],
    copies: Matrix,
    wins: Mapping[str, float],
    rows: Sequence[Mapping[str, object]],
) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(18, 6), layout="constrained")
    image = left.imshow(copies, vmin=0, vmax=1, cmap="viridis")
    left.set_xticks(range(len(arms)), arms, rotation=90)
    left.set_yticks(range(len(arms)), arms)
    left.set_title("rank correlation of the arms")
    figure.colorbar(image, ax=left, shrink=0.7)
    middle.barh(list(wins)[::-1], [100 * share for share in list(wins.values())[::-1]])
    middle.set_xlabel("% of decisions won")
    labels = [str(row["decisions of"]) for row in rows]
    for key, offset in (("SBS", 0.2), ("VBS", -0.2)):
        places = np.arange(len(rows)) + offset
        right.barh(places, [float(str(row[key])) for row in rows], 0.4, label=key)
    right.set_yticks(range(len(rows)), labels)
    right.invert_yaxis()
    right.set_xlabel("mean normalised regret, capped at 3")
    right.legend()
    figure.savefig(RESULTS / f"{name}.png", dpi=80)
    plt.close(figure)


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
