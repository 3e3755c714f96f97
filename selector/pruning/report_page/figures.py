"""The network before and after, as the report shows it: size, speed, memory, quality."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from selector.network.latency import Timed
from selector.pruning.report_values import ReportValues
from selector.tables import count_text

UNKNOWN = "not measured"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of the network, before and after."""

    name: str
    term: str | None
    """Where the glossary explains it."""
    before: str
    after: str
    change: str = ""
    """What is left, or by how much it changed; nothing where it was not measured."""
    share: float | None = None
    """What is left as a share of what was there; None where that says nothing."""
    headline: bool = False
    """Whether it is among the large figures."""

    @property
    def known(self) -> bool:
        """Whether it was measured."""
        return self.after != UNKNOWN


def figures(report: ReportValues) -> list[Figure]:
    """Everything that is compared, in the order in which it is shown."""
    return [*_sizes(report), *_running(report), *_quality(report)]


def _sizes(report: ReportValues) -> Iterator[Figure]:
    yield _counted("MACs for an image", "MACs", *report.macs)
    yield _counted("parameters", "parameters", *report.parameters)
    prints = report.footprints
    files = (None, None) if prints is None else (prints[0].file_bytes, prints[1].file_bytes)
    yield _in_bytes("weights file", "weights file", *files)


def _running(report: ReportValues) -> Iterator[Figure]:
    timed, prints = report.latency, report.footprints
    if timed is None:
        yield Figure(name="latency", term="latency", before=UNKNOWN, after=UNKNOWN, headline=True)
    else:
        yield Figure(
            name=f"latency, {_images(timed.images)}",
            term="latency",
            before=seconds_text(timed.before),
            after=seconds_text(timed.after),
            change=_of_the_time(timed),
            share=timed.ratio,
            headline=True,
        )
    peaks = (None, None) if prints is None else (prints[0].peak_bytes, prints[1].peak_bytes)
    name = "peak memory" if prints is None else f"peak memory, {_images(prints[0].images)}"
    yield _in_bytes(name, "peak memory", *peaks)


def _quality(report: ReportValues) -> Iterator[Figure]:
    before, after = report.before, report.after
    if before.accuracy is not None and after.accuracy is not None:
        yield Figure(
            name="accuracy",
            term="accuracy",
            before=f"{100 * before.accuracy:.2f} %",
            after=f"{100 * after.accuracy:.2f} %",
            change=f"{100 * (after.accuracy - before.accuracy):+.2f} points",
            headline=True,
        )
    else:
        yield Figure(name="accuracy", term="accuracy", before=UNKNOWN, after=UNKNOWN, headline=True)
    stages = {"before repair": report.unrepaired, "before distillation": report.undistilled}
    for stage, found in stages.items():
        if found is not None and found.accuracy is not None:
            value = f"{100 * found.accuracy:.2f} %"
            yield Figure(name=f"accuracy {stage}", term="repair", before="", after=value)
    if not math.isnan(after.loss):
        yield Figure(
            name="loss",
            term="loss",
            before=f"{before.loss:.4f}",
            after=f"{after.loss:.4f}",
            change=f"{after.loss - before.loss:+.4f}",
        )


def _counted(
    name: str,
    term: str,
    before: float,
    after: float,
    text: Callable[[float], str] = count_text,
) -> Figure:
    return Figure(
        name=name,
        term=term,
        before=text(before),
        after=text(after),
        change=f"{100 * after / before:.1f} % left",
        share=after / before,
        headline=True,
    )


def _in_bytes(name: str, term: str, before: int | None, after: int | None) -> Figure:
    if before is None or after is None:
        return Figure(name=name, term=term, before=UNKNOWN, after=UNKNOWN, headline=True)
    return _counted(name, term, before, after, bytes_text)


def _of_the_time(timed: Timed) -> str:
    """The ratio of both times, with its interval where it is known."""
    text = f"{100 * timed.ratio:.0f} % of the time"
    if timed.interval is None:
        return text
    low, high = (f"{100 * end:.0f}" for end in timed.interval)
    return f"{text} ({low} to {high} %)"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def bytes_text(count: float) -> str:
    """A size as a person reads it, in powers of 1000.

    >>> bytes_text(1_092_520), bytes_text(812)
    ('1.1 MB', '812 bytes')
    """
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            scaled = count / limit
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.1f} {unit}"
    return f"{count} bytes"


def seconds_text(seconds: float) -> str:
    """A time as a person reads it.

    >>> seconds_text(0.00212), seconds_text(1.5), seconds_text(432.0)
    ('2.12 ms', '1.5 s', '7 min 12 s')
    """
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
