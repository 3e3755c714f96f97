"""The evaluation protocol run, printed, plotted and written: `python -m training evaluate`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from joblib import Parallel, delayed
from matplotlib import pyplot as plt

from selector.errors import SelectorError
from selector.learning.evaluation import SBS_NATS, SBS_REGRET, SELECTOR, VBS, Judged
from selector.learning.selector import SaliencySelector
from selector.learning.table import TrainingTable
from selector.records.records import Records
from selector.tables import text_table
from training.evaluation.protocol import RATIO_BINS, evaluated, in_bin, table_of
from training.evaluation.splits import SplitName
from training.reporting.markdown import cell, markdown_table
from training.reporting.marked_part import put
from training.reporting.result_file import RESULTS, write_result

mpl.use("Agg")

SPLITS: tuple[SplitName, ...] = ("family", "dataset", "both")
SHARES = (0.25, 0.5)
"""Parts of the training networks of the learning curve."""
FIXED = "fixed portfolio of {} + oracle"
Row = Mapping[str, Any]


def run(data: Path, *, seeds: int, jobs: int, curve: bool) -> None:
    """Evaluate, print the tables, write `results/evaluation.json` and `results/evaluation.png`."""
    records = Records.load(data).own()
    table = table_of(records)
    tasks = [delayed(_judged)(records, table, split, 0, 1.0) for split in SPLITS]
    tasks += [delayed(_judged)(records, table, "family", seed, 1.0) for seed in range(1, seeds)]
    shares = SHARES if curve else ()
    tasks += [delayed(_judged)(records, table, "family", 0, share) for share in shares]
    found = Parallel(n_jobs=jobs)(tasks)
    judged = dict(zip(SPLITS, found[:3], strict=True))
    repeats, fewer = found[3 : 2 + seeds], found[2 + seeds :]
    family = judged["family"]
    print(_methods_table(family))
    summary = _summary(judged, len(records.networks))
    summary |= {f"gap_closed_seed{n}": one.gap_closed(SELECTOR) for n, one in enumerate(repeats, 1)}
    for share, one in zip(shares, fewer, strict=True):
        summary[f"gap_closed_capped_with_{share:.0%}_of_networks"] = one.gap_closed(
            SELECTOR, "capped"
        )
    summary |= {
        "interval_coverage": family.coverage,
        "forecast_rank_correlation": family.forecast_correlation,
    }
    print(text_table(["figure", ""], [[name, f"{value:.4g}"] for name, value in summary.items()]))
    rows: list[Row] = [
        {"split": split, **row} for split, one in judged.items() for row in _rows(one)
    ]
    rows += [{"split": "family", **row} for row in _parts(family)]
    plot(family, RESULTS / "evaluation.png")
    print(write_result("evaluation", summary, rows))


def _judged(
    records: Records, table: TrainingTable, split: SplitName, seed: int, share: float
) -> Judged:
    full = seed == 0 and share == 1.0
    # Dozens of folds: a jackknife of three is enough, and slightly less sure of itself.
    folds = {} if split == "family" else {"folds": 3}
    return evaluated(
        records,
        table,
        split,
        selector=SaliencySelector(seed=seed, **folds),
        baselines=full and split == "family",
        share=share,
        progress=full,
    )


def _summary(judged: Mapping[SplitName, Judged], networks: int) -> dict[str, float]:
    one = judged["family"]
    low, high = one.interval(SELECTOR)
    bins = [in_bin(one, *edges) for edges in RATIO_BINS.values()]
    found = {
        "gap_closed": one.gap_closed(SELECTOR),
        "gap_closed_low": low,
        "gap_closed_high": high,
        "gap_closed_raw": one.gap_closed(SELECTOR, "nats"),
        "gap_closed_raw_min": min(
            one.gap_closed(SELECTOR, "nats", where=where) for where in bins if where.any()
        ),
        "gap_closed_median_network": one.median_network(SELECTOR),
        "gap_closed_leave_dataset_out": judged["dataset"].gap_closed(SELECTOR),
        "gap_closed_leave_both_out": judged["both"].gap_closed(SELECTOR),
        "worse_than_sbs_share": one.worse_than(SELECTOR, SBS_NATS),
        "worse_than_sbs_by_regret_share": one.worse_than(SELECTOR, SBS_REGRET),
        "points_over_sbs_by_regret": 100 * (one.gap_closed(SELECTOR) - one.gap_closed(SBS_REGRET)),
        "gap_closed_over_sbs_by_regret": one.gap_closed(SELECTOR, base=SBS_REGRET),
        "gap_closed_capped": one.gap_closed(SELECTOR, "capped"),
        "gap_closed_capped_over_sbs_by_regret": one.gap_closed(SELECTOR, "capped", SBS_REGRET),
        "networks": float(networks),
        "decisions": float(len(one.network)),
    }
    for size in (1, 2, 3, 5):
        found[f"shortlist{size}"] = one.gap_closed(f"selector, verify={size}")
        found[f"fixed_portfolio{size}"] = one.gap_closed(f"fixed portfolio of {size} + oracle")
        for kind, name in (("shortlist", "selector, verify={}"), ("fixed_portfolio", FIXED)):
            found[f"{kind}{size}_capped"] = one.gap_closed(name.format(size), "capped")
    return found


def _rows(one: Judged) -> list[Row]:
    return [
        {
            "method": name,
            "oracle_calls": round(outcome.oracle_calls, 2),
            "regret": round(one.mean(name, "regret"), 4),
            "capped_regret": round(one.mean(name, "capped"), 4),
            "nats": round(one.mean(name, "nats"), 5),
            "gap_closed": round(one.gap_closed(name), 4),
            "gap_closed_capped": round(one.gap_closed(name, "capped"), 4),
            "gap_closed_nats": round(one.gap_closed(name, "nats"), 4),
            "worse_than_sbs": round(one.worse_than(name, SBS_NATS), 4),
            "decisions": int((~np.isnan(outcome.nats)).sum()),
        }
        for name, outcome in one.outcomes.items()
    ]


def _parts(one: Judged) -> list[Row]:
    """The selector on every ratio, context and family."""
    parts = {f"ratio {name}": in_bin(one, *edges) for name, edges in RATIO_BINS.items()}
    unpruned = one.context == "unpruned"
    parts |= {"unpruned": unpruned.astype(float), "pruned before": (~unpruned).astype(float)}
    parts |= {
        f"family {name}": (one.family == name).astype(float)
        for name in np.unique(one.family).tolist()
    }
    return [
        {
            "part": name,
            "decisions": int(where.sum()),
            **{
                f"gap_closed_{measure}": round(one.gap_closed(SELECTOR, measure, where=where), 4)
                for measure in ("regret", "capped", "nats")
            },
            **{
                f"{short}_nats": round(one.mean(method, "nats", where), 5)
                for short, method in (("sbs", SBS_NATS), ("selector", SELECTOR), ("vbs", VBS))
            },
        }
        for name, where in parts.items()
        if where.any()
    ]


def _methods_table(one: Judged) -> str:
    rows = [[cell(value) for value in row.values()] for row in _rows(one)]
    return text_table(list(_rows(one)[0]), rows)


SHOWN = {
    "random": "random channels",
    SBS_NATS: "single best, by mean nats (SBS)",
    SBS_REGRET: "single best, by normalised regret",
    "rank_mean": "rank mean of all metrics",
    "lowest joint Fisher": "lowest joint Fisher of the set, unlearnt",
    "nearest neighbours": "nearest neighbours",
    "linear": "linear model",
    "group features only": "boosted trees on group features only",
    SELECTOR: "**selector**",
    FIXED.format(2): "fixed greedy portfolio of 2 + oracle",
    "selector, verify=2": "**selector, verify=2**",
    FIXED.format(3): "fixed greedy portfolio of 3 + oracle",
    "selector, verify=3": "**selector, verify=3**",
    FIXED.format(5): "fixed greedy portfolio of 5 + oracle",
    "selector, verify=5": "**selector, verify=5**",
    VBS: "full oracle (VBS)",
}
"""Methods of the table in `docs/benchmarks.md`, and what they are called there."""


def update_page(page: Path) -> None:
    """Write the table of the evaluation into a document, from its result file.

    Raises:
        SelectorError: No result file, or no marks in the document.
    """
    file = RESULTS / "evaluation.json"
    if not file.exists():
        raise SelectorError(f"no {file}; run evaluate first")
    put(page, "evaluation", markdown(json.loads(file.read_text())["rows"]))


def markdown(rows: Sequence[Row]) -> str:
    """Held-out families of the result file as a Markdown table; regrets capped at 3."""
    family = {row["method"]: row for row in rows if row["split"] == "family" and "method" in row}
    columns = ["method", "oracle calls a decision", "normalised regret", "loss change, nats"]
    columns += ["gap closed", "gap closed, nats"]
    lines = []
    for method, name in SHOWN.items():
        if method in family:
            row = family[method]
            cells = [f"{row['oracle_calls']:.0f}", f"{row['capped_regret']:.3f}"]
            cells += [f"{row['nats']:.4f}", f"{row['gap_closed_capped']:.0%}"]
            lines.append([name, *cells, f"{row['gap_closed_nats']:.0%}"])
    return markdown_table(columns, lines)


def plot(one: Judged, path: Path) -> None:
    """Gap closed against oracle calls, with the fixed portfolio beside it; bars of families."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for label, name, first in (
        ("selector", "selector, verify={}", SELECTOR),
        ("fixed greedy portfolio", FIXED, SBS_REGRET),
        ("fixed best arms", "fixed best {} + oracle", SBS_REGRET),
    ):
        points = [(0, one.gap_closed(first, "capped"))]
        points += [(k, one.gap_closed(name.format(k), "capped")) for k in (2, 3, 5)]
        left.plot(*zip(*points, strict=True), marker="o", label=label)
    left.set(
        xlabel="oracle calls a decision",
        ylabel="gap closed (capped normalised regret)",
        title="Held-out families",
    )
    left.axhline(1, color="grey", linewidth=0.8)
    left.legend()
    parts = [row for row in _parts(one) if str(row["part"]).startswith("family")]
    names = [str(row["part"]).removeprefix("family ") for row in parts]
    right.barh(names, [float(str(row["gap_closed_capped"])) for row in parts])
    right.axvline(0, color="grey", linewidth=0.8)
    right.set(xlabel="gap closed, no oracle call", title="By family")
    figure.savefig(path, dpi=110)
    plt.close(figure)
