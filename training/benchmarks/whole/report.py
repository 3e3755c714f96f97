"""What whole prunings lose of what is predicted, and what the selector's widths are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from selector.learning.composing import LEAST_SUM, Composing
from selector.learning.selector import SaliencySelector
from selector.tables import text_table
from training.benchmarks.common.differences import difference_of
from training.benchmarks.repair.cases import FEW_TEST_IMAGES
from training.benchmarks.whole.runs import (
    EVEN,
    FACTORS,
    FILE,
    KEPT,
    KEPT_ON_IMAGENET,
    LAMP,
    MEASURED,
    ROLES,
    SELECTOR,
    WAYS,
    WIDTHS,
    WholeRun,
    calls_of,
    cases,
    finished,
    run_missing,
)
from training.reporting.result_file import add_to_summary, result_if_there, write_result

COMPARED = {
    "widths_over_even": (WIDTHS, EVEN),
    "measured_over_even": (MEASURED, EVEN),
    "lamp_over_even": (LAMP, EVEN),
    "widths_over_lamp": (WIDTHS, LAMP),
    "measured_over_widths": (MEASURED, WIDTHS),
}
"""Key of the summary -> the ways that are compared."""
SHARES = sorted({KEPT_ON_IMAGENET, *KEPT[SELECTOR]}, reverse=True)
FEWEST_FACTORS = 5
"""Prunings of other families that an interval is learnt from at least."""
MEDIAN_AT = 0.5
"""Share of the MACs at which the width of the interval is told."""


def run(
    names: Sequence[str] | None,
    data: Path,
    learnt: Path,
    results: Path,
    jobs: int,
    minutes: float | None,
    ship: Path | None,
) -> None:
    """Make the missing runs, print the tables of all, write `results/whole.json`.

    Args:
        names: Networks that are run now; None for all.
        data: Records.
        learnt: Folder of selectors that were learnt without a family.
        results: Of the runs and the result file.
        jobs: Processes.
        minutes: No run is begun later than this.
        ship: A saved selector that is given the factors of all runs; None leaves it alone.
    """
    wanted = {case.name for case in cases(names)}
    calls = calls_of(cases(), data, learnt)
    asked = {key: call for key, call in calls.items() if key[0] in wanted}
    run_missing(asked, results / FILE, jobs, minutes)
    runs = finished(calls, results / FILE)
    rows = [
        [way, f"{keep:.0%}", f"{len(some)}", f"{100 * np.mean([r.left for r in some]):.1f}"]
        for way in WAYS
        for keep in SHARES
        if (some := [r for r in runs if r.way == way and r.keep_macs == keep])
    ]
    print(text_table(["way", "MACs", "networks", "top-1, %"], rows))
    forecast = [r for r in runs if r.way == SELECTOR and r.predicted]
    kept_apart = [r for r in runs if r.role == "test"]
    summary = judged(forecast) | widths(runs) | widths(kept_apart, "_test")
    print("\n".join(f"{name}: {value:.4g}" for name, value in summary.items()))
    plain = [{k: v for k, v in asdict(r).items() if k != "kept_at"} for r in runs]
    print(write_result("whole", summary, plain, results))
    add_to_summary("evaluation", quoted(results), results)
    if ship is not None and forecast:
        selector = SaliencySelector.load(ship)
        selector.composing_ = Composing.learnt([r.factor for r in learnt_from(forecast)])
        selector.save(ship)
        print(f"{ship}: {selector.composing_}")


def quoted(results: Path) -> dict[str, float]:
    """What the result file of the evaluation says of whole prunings; empty before any."""
    found = result_if_there("whole", results)
    return {} if found is None else {k: v for k, v in found["summary"].items() if k not in OWN}


OWN = ("whole_prunes", "whole_prunes_test")
"""Counts of runs, which stay here."""


def judged(runs: Sequence[WholeRun]) -> dict[str, float]:
    """How often the 90 % interval of the accuracy left holds the one found, family left out.

    Networks kept for tests are judged by the factors of the others, and told apart by `_test`.
    """
    factors = [(r.family, r.factor) for r in learnt_from(runs)]
    found: dict[str, float] = {}
    for role in ROLES:
        forecasts = [
            Forecast.of(run, Composing.learnt(others))
            for run in runs
            if run.role == role
            and len(others := [f for family, f in factors if family != run.family])
            >= FEWEST_FACTORS
        ]
        if forecasts:
            end = "" if role == "learn" else f"_{role}"
            found |= {name + end: value for name, value in _together(forecasts).items()}
    return found


@dataclass(frozen=True)
class Forecast:
    """What was expected of one pruning, and whether that was right; accuracies in percent."""

    keep_macs: float
    inside: bool
    """Whether the 90 % interval holds the accuracy found, to one standard error of the latter."""
    width: float
    error: float
    """Between the accuracy expected and the one found."""

    @classmethod
    def of(cls, run: WholeRun, composing: Composing) -> "Forecast":
        """Of a pruning, with what whole prunings of other networks lost."""
        best, middle, worst = (
            100 * run.unpruned * _kept(run, factor)
            for factor in (composing.low, composing.middle, composing.high)
        )
        left = 100 * run.left
        noise = 100 * (run.left * (1 - run.left) / FEW_TEST_IMAGES) ** 0.5
        inside = worst - noise <= left <= best + noise
        return cls(run.keep_macs, inside, best - worst, abs(middle - left))


def _together(forecasts: Sequence[Forecast]) -> dict[str, float]:
    found = {
        "whole_prunes": float(len(forecasts)),
        "forecast_coverage": float(np.mean([one.inside for one in forecasts])),
        "forecast_error_points": float(np.median([one.error for one in forecasts])),
    }
    for keep in KEPT[SELECTOR]:
        some = [one for one in forecasts if one.keep_macs == keep]
        if not some:
            continue
        found[f"forecast_inside_{100 * keep:.0f}"] = float(sum(one.inside for one in some))
        found[f"forecast_inside_{100 * keep:.0f}_of"] = float(len(some))
        if keep == MEDIAN_AT:
            found["forecast_width_points"] = float(np.median([one.width for one in some]))
    return found


def learnt_from(runs: Sequence[WholeRun]) -> list[WholeRun]:
    """Those with a predicted sum that is large enough for a factor, of networks to learn from."""
    return [
        run
        for run in runs
        if run.role == "learn" and run.predicted is not None and run.predicted >= LEAST_SUM
    ]


def _kept(run: WholeRun, factor: float) -> float:
    return float(np.interp(np.log(factor), np.log(FACTORS), run.kept_at))


def widths(runs: Sequence[WholeRun], end: str = "") -> dict[str, float]:
    """Points by which some widths are ahead of others, one arm choosing channels.

    At four fifths of the MACs those of networks for ImageNet.

    Args:
        runs: Of some networks.
        end: Put behind the names of the numbers.
    """
    table: Mapping[tuple[str, str, float], float] = {
        (r.network, r.way, r.keep_macs): 100 * r.left for r in runs
    }
    found: dict[str, float] = {}
    for name, (one, other) in COMPARED.items():
        for keep in SHARES:
            names = [n for n, way, k in table if (way, k) == (one, keep)]
            ahead = [
                table[n, one, keep] - table[n, other, keep]
                for n in names
                if (n, other, keep) in table
            ]
            found |= difference_of(ahead, f"{name}_{100 * keep:.0f}{end}")
    return found
