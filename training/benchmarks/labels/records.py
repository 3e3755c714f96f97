"""What can be learnt from the records at all? Noise, near-copies, headroom, and who wins.

Split-half agreement (rank correlation of the two splits within a decision), rank correlation of the
arms' scores, mean normalised regret of the single best arm (SBS, chosen on the networks of all
other families), of the oracle (VBS, chosen on the selection split and judged on the other) and of
the median arm; by family, data set, size of step and state of the network. Foreign networks are
left out.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt

from selector.learning.evaluation import Grid
from selector.records.records import Records
from selector.tables import text_table
from selector.typing import Matrix
from training.audit.audit import Audit, correlations, judge
from training.evaluation.headline import noise_free
from training.evaluation.weights import network_of
from training.reporting.markdown import cell
from training.reporting.result_file import RESULTS, write_result

mpl.use("Agg")

NEAR_COPY = 0.95


def run(data: Path, name: str = "records") -> None:
    """Audit the records of a folder, print the tables, write `results/NAME.json` and plots."""
    records = Records.load(data).own()
    judged = judge(records)
    rows = headroom(judged)
    print(text_table(list(rows[0]), [[cell(v) for v in row.values()] for row in rows]))
    won = wins(judged)
    print(text_table(["arm", "wins"], [[arm, f"{share:.1%}"] for arm, share in won.items()]))
    scored = [arm for arm in judged.arms if any(arm in group.scores for group in records.groups)]
    copies = correlations(records, scored)
    near = [
        f"{a} ~ {b} {copies[i, j]:.2f}"
        for i, a in enumerate(scored)
        for j, b in enumerate(scored)
        if i < j and copies[i, j] > NEAR_COPY
    ]
    ceilings = _ceilings(judged, {r.arm for r in records.candidates if r.channels is not None})
    print("\n".join(f"{key}: {value:.5f} nats" for key, value in ceilings.items()))
    chosen, times = np.unique(judged.sbs()[1], return_counts=True)
    best = judged.arms[int(chosen[times.argmax()])]
    print(f"single best: {best}; near-copies: {', '.join(near) or 'none'}")
    _plot(name, scored, copies, won, rows)
    summary = {
        "networks": float(len(records.networks)),
        "families": float(len({p.family for p in records.networks})),
        "datasets": float(len({p.dataset for p in records.networks})),
        "candidates": float(len(records.candidates)),
        "decisions": float(len(judged.vbs)),
        "split_half_correlation": _mean(judged.agreement),
        "split_half_correlation_compensated": _mean(judged.compensated_agreement),
        "sbs_normalised_regret": float(str(rows[0]["SBS"])),
        "vbs_normalised_regret": float(str(rows[0]["VBS"])),
        "median_normalised_regret": float(str(rows[0]["median arm"])),
        "near_copies": float(len(near)),
        **_zoo(records),
        **ceilings,
    }
    shares: list[Mapping[str, object]] = [{"arm": a, "wins": share} for a, share in won.items()]
    pairs: list[Mapping[str, object]] = [{"near-copies": pair} for pair in near]
    print(
        write_result(
            name, {k: v for k, v in summary.items() if v == v}, [*rows, *shares, *pairs], RESULTS
        )
    )


WELL_TRAINED = 0.85
"""Share of CIFAR-10's test images from which a network counts as well trained."""


def _zoo(records: Records) -> dict[str, float]:
    """What kinds of networks there are; a network on two sets of images counts once."""
    once = {network_of(p.network): p for p in records.networks}.values()
    theirs = [p for p in once if p.origin == "third_party"]
    good = [
        p
        for p in once
        if p.origin == "third_party"
        or (p.dataset == "cifar10" and (p.accuracy or 0.0) >= WELL_TRAINED)
    ]
    return {
        "networks": float(len(once)),
        "recordings": float(len(records.networks)),
        "digits_share": sum(p.dataset == "digits" for p in once) / len(once),
        "third_party": float(len(theirs)),
        "well_trained": float(len(good)),
    }


def _ceilings(judged: Audit, sets: Collection[str]) -> dict[str, float]:
    """What oracles reach, in nats: of rankings alone, with sets, and without noise."""
    grid = judged.grid
    ranking = [number for number, arm in enumerate(judged.arms) if arm not in sets]
    fewer = Grid(grid.selection[:, ranking], grid.evaluation[:, ranking])
    best = fewer.of_arms(fewer.measured())
    return {
        "vbs_nats_rankings": float(best.mean()),
        "vbs_nats_with_sets": float(grid.of_arms(grid.measured()).mean()),
        "vbs_noise_corrected": float(noise_free(grid, judged.errors).mean()),
    }


def headroom(judged: Audit) -> list[dict[str, object]]:
    """Agreement and regrets of all decisions, then of every part of them."""
    sbs, _ = judged.sbs()
    rows = [_row("all", judged, sbs, np.ones(len(sbs), bool))]
    for label, parts in judged.labels.items():
        rows += [_row(f"{label}: {p}", judged, sbs, parts == p) for p in np.unique(parts)]
    return rows


def _row(
    label: str, judged: Audit, sbs: Matrix, where: "npt.NDArray[np.bool_]"
) -> dict[str, object]:
    single, best = float(sbs[where].mean()), float(judged.vbs[where].mean())
    return {
        "decisions of": label,
        "number": int(where.sum()),
        "split-half": round(_mean(judged.agreement[where]), 4),
        "SBS": round(single, 4),
        "VBS": round(best, 4),
        "median arm": round(float(np.nanmedian(judged.evaluation[where], 1).mean()), 4),
        "headroom": round(single - best, 4),
    }


def _mean(values: Matrix) -> float:
    """Mean of what is there; NaN if nothing is."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")


def wins(judged: Audit) -> dict[str, float]:
    """Arm -> share of the decisions that it wins, the most frequent winner first."""
    count = np.bincount(judged.winner, minlength=len(judged.arms)) / len(judged.winner)
    shares = dict(zip(judged.arms, count.tolist(), strict=True))
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _plot(
    name: str,
    arms: Sequence[str],
    copies: Matrix,
    wins: Mapping[str, float],
    rows: Sequence[Mapping[str, object]],
) -> None:
    height = max(6.0, 0.3 * len(rows))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(18, height), layout="constrained")
    image = left.imshow(copies, vmin=0, vmax=1, cmap="viridis")
    left.set_xticks(range(len(arms)), arms, rotation=90)
    left.set_yticks(range(len(arms)), arms)
    left.set_title("rank correlation of the arms")
    figure.colorbar(image, ax=left, shrink=0.7)
    middle.barh(list(wins)[::-1], [100 * share for share in list(wins.values())[::-1]])
    middle.set_xlabel("% of decisions won")
    labels = [str(row["decisions of"]) for row in rows]
    for key, offset in (("median arm", 0.27), ("SBS", 0.0), ("VBS", -0.27)):
        places = np.arange(len(rows)) + offset
        right.barh(places, [float(str(row[key])) for row in rows], 0.27, label=key)
    right.set_yticks(range(len(rows)), labels)
    right.invert_yaxis()
    right.set_xlabel("mean normalised regret, capped at 3")
    right.legend()
    figure.savefig(RESULTS / f"{name}.png", dpi=80)
    plt.close(figure)
