"""The evaluation protocol run, printed, plotted and written: `python -m training evaluate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from joblib import Parallel, delayed
from matplotlib import pyplot as plt

from selector.errors import SelectorError
from selector.learning.evaluation import SBS_NATS, SBS_REGRET, SELECTOR, VBS, Grid, Judged
from selector.learning.selector import SaliencySelector
from selector.learning.table import TrainingTable
from selector.records.records import Records
from selector.tables import text_table
from training.benchmarks.whole.report import quoted
from training.evaluation.baselines import JOINT_RULE
from training.evaluation.headline import Headline, by_network, noise_free
from training.evaluation.protocol import RATIO_BINS, errors_of, evaluated, in_bin, table_of
from training.evaluation.splits import SplitName, folds_of
from training.reporting.markdown import cell, markdown_table
from training.reporting.marked_part import put
from training.reporting.result_file import RESULTS, read_result, write_result

mpl.use("Agg")

SPLITS: tuple[SplitName, ...] = ("family", "dataset", "both", "third_party")
SHARES = (0.25, 0.5)
"""Parts of the training networks of the learning curve."""
FIXED = "fixed portfolio of {} + oracle"
Row = Mapping[str, Any]


def run(data: Path, *, seeds: int, jobs: int, curve: bool) -> None:
    """Evaluate, print the tables, write `results/evaluation.json` and `results/evaluation.png`."""
    records = Records.load(data).own()
    table = table_of(records)
    splits = [name for name in SPLITS if _can(records, name)]
    shares = SHARES if curve else ()
    wanted: list[tuple[SplitName, int, float]] = [(split, 0, 1.0) for split in splits]
    wanted += [("family", seed, 1.0) for seed in range(1, seeds)]
    wanted += [("family", 0, share) for share in shares]
    found = Parallel(n_jobs=jobs)(delayed(_judged)(records, table, *one) for one in wanted)
    by_what = dict(zip(wanted, found, strict=True))
    family = by_what["family", 0, 1.0]
    print(_methods_table(family))
    headline = Headline([by_what["family", seed, 1.0] for seed in range(seeds)])
    summary = headline.summary() | _noise_free(records, table, headline)
    for split in splits[1:]:
        other = Headline([by_what[split, 0, 1.0]])
        rule = other.best_rule("nats")
        summary |= {
            f"{split}_nats_closed": other.closed(SELECTOR, "nats"),
            f"{split}_capped_closed": other.closed(SELECTOR, "capped"),
            f"{split}_nats_over_best_rule": 100
            * (other.closed(SELECTOR, "nats") - other.closed(rule, "nats")),
        }
    for share in shares:
        part = Headline([by_what["family", 0, share]])
        summary[f"capped_closed_with_{share:.0%}_of_networks"] = part.closed(SELECTOR, "capped")
    summary |= {
        "networks": float(len(headline.networks)),
        "recordings": float(len(records.networks)),
        "families": float(len({p.family for p in records.networks})),
        "decisions": float(len(family.network)),
        "seeds": float(seeds),
        "interval_coverage": family.coverage,
        "forecast_rank_correlation": family.forecast_correlation,
    }
    print(text_table(["figure", ""], [[name, f"{value:.4g}"] for name, value in summary.items()]))
    for measure in ("nats", "capped"):
        print(f"best unlearnt rule, in hindsight, by {measure}: {headline.best_rule(measure)}")
    rows: list[Row] = [
        {"split": split, **row} for split in splits for row in _rows(by_what[split, 0, 1.0])
    ]
    rows += [{"split": "family", **row} for row in _parts(family)]
    plot(family, RESULTS / "evaluation.png")
    print(write_result("evaluation", summary | quoted(RESULTS), rows))


def _can(records: Records, split: SplitName) -> bool:
    """Whether the records can be split so; said where they cannot."""
    try:
        folds_of(records.networks, split)
    except SelectorError as error:
        print(f"not split by {split}: {error}")
        return False
    return True


def _noise_free(records: Records, table: TrainingTable, headline: Headline) -> dict[str, float]:
    """How much of what an oracle without noise would gain the selector gains."""
    least = noise_free(Grid.of(table), errors_of(records, table))
    floor = by_network(table.network, least).mean()
    sbs, own, vbs = (headline.costs(name, "nats").mean() for name in (SBS_NATS, SELECTOR, VBS))
    return {
        "noise_free_share": float((sbs - own) / (sbs - floor)),
        "sbs_nats": float(sbs),
        "selector_nats": float(own),
        "vbs_nats": float(vbs),
        "vbs_noise_free_nats": float(floor),
    }


def _judged(
    records: Records, table: TrainingTable, split: SplitName, seed: int, share: float
) -> Judged:
    full = seed == 0 and share == 1.0
    # Dozens of folds: a jackknife of three is enough, and slightly less sure of itself.
    return evaluated(
        records,
        table,
        split,
        selector=SaliencySelector(seed=seed, folds=3),
        baselines=full and split == "family",
        share=share,
        progress=full,
    )


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
    "always reconstruction": "always reconstruction",
    "always reconstruction_fisher": "always reconstruction_fisher",
    JOINT_RULE: "lowest joint effect of the set on the loss, one weight learnt",
    "lowest residual": "lowest share of variance that a refit cannot save, unlearnt",
    "lowest fisher residual": "lowest nats that a refit cannot save (K-FAC), unlearnt",
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
    put(page, "evaluation", markdown(read_result("evaluation", "evaluate", RESULTS)["rows"]))


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
