"""What whole prunings lose of what is predicted, and what the selector's widths are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from selector.learning.composing import LEAST_SUM, Composing
from selector.learning.selector import SaliencySelector
from selector.tables import text_table
from training.benchmarks.common.differences import FEWEST, mean_interval
from training.benchmarks.repair.cases import FEW_TEST_IMAGES
from training.benchmarks.whole.runs import FACTORS, FILE, KEPT, WAYS, WholeRun, run_missing
from training.reporting.result_file import write_result

SELECTOR, WIDTHS, EVEN = WAYS


def run(
    data: Path, learnt: Path, results: Path, jobs: int, minutes: float | None, ship: Path | None
) -> None:
    """Make the missing runs, print the tables, write `results/whole.json`.

    Args:
        data: Records.
        learnt: Folder of selectors that were learnt without a family.
        results: Of the runs and the result file.
        jobs: Processes.
        minutes: No run is begun later than this.
        ship: A saved selector that is given the factors of all runs; None leaves it alone.
    """
    runs = run_missing(data, learnt, results / FILE, jobs, minutes)
    rows = [
        [way, f"{keep:.0%}", f"{len(some)}", f"{100 * np.mean([r.left for r in some]):.1f}"]
        for way in WAYS
        for keep in KEPT
        if (some := [r for r in runs if r.way == way and r.keep_macs == keep])
    ]
    print(text_table(["way", "MACs", "networks", "top-1, %"], rows))
    forecast = [r for r in runs if r.way == SELECTOR and r.predicted]
    summary = judged(forecast) | widths(runs)
    print("\n".join(f"{name}: {value:.4g}" for name, value in summary.items()))
    plain = [{k: v for k, v in asdict(r).items() if k != "kept_at"} for r in runs]
    print(write_result("whole", summary, plain, results))
    if ship is not None and forecast:
        selector = SaliencySelector.load(ship)
        selector.composing_ = Composing.learnt([r.factor for r in telling(forecast)])
        selector.save(ship)
        print(f"{ship}: {selector.composing_}")


def judged(runs: Sequence[WholeRun]) -> dict[str, float]:
    """How often the 90 % interval of the accuracy left holds the one found, family left out."""
    found: list[tuple[bool, float, float, float]] = []
    factors = [(r.family, r.factor) for r in telling(runs)]
    for run in runs:
        others = [factor for family, factor in factors if family != run.family]
        if len(others) < 5:
            continue
        composing = Composing.learnt(others)
        best, middle, worst = (
            100 * run.unpruned * _kept(run, f)
            for f in (composing.low, composing.middle, composing.high)
        )
        left = 100 * run.left
        # The test images have noise of their own: one standard error of a share.
        noise = 100 * (run.left * (1 - run.left) / FEW_TEST_IMAGES) ** 0.5
        held = worst - noise <= left <= best + noise
        found.append((held, best - worst, abs(middle - left), run.keep_macs))
    if not found:
        return {}
    inside, width, error, keep = (np.array(column) for column in zip(*found, strict=True))
    return {
        "whole_prunes": float(len(found)),
        "forecast_coverage": float(inside.mean()),
        "forecast_width_points": float(np.median(width[keep == 0.5])),
        "forecast_error_points": float(np.median(error)),
    }


def telling(runs: Sequence[WholeRun]) -> list[WholeRun]:
    """Those with a predicted sum that is large enough for a factor."""
    return [run for run in runs if run.predicted is not None and run.predicted >= LEAST_SUM]


def _kept(run: WholeRun, factor: float) -> float:
    return float(np.interp(np.log(factor), np.log(FACTORS), run.kept_at))


def widths(runs: Sequence[WholeRun]) -> dict[str, float]:
    """Points by which the selector's widths are ahead of even ones, one arm choosing channels."""
    table: Mapping[tuple[str, str, float], float] = {
        (r.network, r.way, r.keep_macs): 100 * r.left for r in runs
    }
    found: dict[str, float] = {}
    for keep in KEPT:
        names = [
            n for n, way, k in table if way == WIDTHS and k == keep and (n, EVEN, keep) in table
        ]
        if len(names) < FEWEST:
            continue
        ahead = [table[n, WIDTHS, keep] - table[n, EVEN, keep] for n in names]
        middle, low, _ = mean_interval(ahead)
        name = f"widths_over_even_{100 * keep:.0f}"
        found |= {
            name: middle,
            f"{name}_low": low,
            f"{name}_worst": min(ahead),
            f"{name}_networks": float(len(names)),
        }
    return found
