"""Rows of the report's tables: layers, trusted metrics, repair, and how it was made."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from selector.errors import SelectorError
from selector.pruning.report_page.figures import UNKNOWN, seconds_text
from selector.pruning.report_values import ReportValues
from selector.saliency.proposals.registry import PROPOSALS
from selector.saliency.registry import METRICS, find_metric


@dataclass(frozen=True)
class Trust:
    """Which metric removed how many channels of which group."""

    metrics: tuple[tuple[str, str], ...]
    """Name and what it is, the one that removed most first."""
    rows: tuple[tuple[str, tuple[int, ...], int], ...]
    """Group, channels that each metric removed of it, and channels that it had."""


def trust(report: ReportValues) -> Trust:
    """Groups x metrics: the channels removed."""
    removed: Counter[str] = Counter()
    for row in report.rows:
        removed.update(dict(row.trusted))
    names = [name for name, count in removed.most_common() if count]
    return Trust(
        metrics=tuple((name, what_it_is(name)) for name in names),
        rows=tuple(
            (
                row.group,
                tuple(dict(row.trusted).get(name, 0) for name in names),
                row.channels_before,
            )
            for row in report.rows
        ),
    )


def what_it_is(name: str) -> str:
    """What a metric or proposal does, in its own words; nothing where it is not known here.

    >>> what_it_is("l1")
    "Size of a channel's filters: sum of absolute weights, over all producers."
    >>> what_it_is("nobody's")
    ''
    """
    if name in PROPOSALS and name not in METRICS:
        return PROPOSALS[name].summary
    try:
        return find_metric(name).summary
    except SelectorError:
        return ""


def how_made(report: ReportValues) -> Iterator[tuple[str, str, bool]]:
    """How the pruning was made: what, its value, and whether that is code."""
    run = report.run
    if run is None:
        yield "when and how", UNKNOWN, False
        return
    yield "finished", run.finished.replace("T", " ").replace("+00:00", " UTC"), False
    yield "took", seconds_text(run.seconds), False
    yield "network", run.network, True
    yield "input", "; ".join(run.inputs) or UNKNOWN, False
    if run.command is not None:
        yield "command", run.command, True
    yield "call", run.call, True
    pruned_by = UNKNOWN if run.images is None else f"{run.images:,} calibration images"
    yield "pruned with", pruned_by, False
    yield "judged on", f"{report.after.images:,} {report.images_from}", False
    yield "criterion", report.criterion, True
    yield "images evaluated by the oracle", f"{report.oracle_images:,}", False
    yield "seed", f"{run.seed} (PyTorch's global one; prune itself draws from fixed seeds)", False
    yield "machine", f"{run.machine}; {run.threads} thread{'s' * (run.threads != 1)}", False
    yield "device", run.device, True
    yield "versions", ", ".join(f"{package} {found}" for package, found in run.versions), False
