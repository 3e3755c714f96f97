"""The report as one HTML page: values from the report, drawn by the templates."""

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from selector.planning.plan import goal_text
from selector.pruning.report_page.figures import figures, seconds_text
from selector.pruning.report_page.glossary import TERMS, anchor
from selector.pruning.report_page.plots import course_chart, prediction_chart
from selector.pruning.report_page.sections import how_made, trust
from selector.pruning.report_page.verdict import advice, forecast, verdict
from selector.pruning.report_values import ReportValues
from selector.tables import count_text, nats_text, printable

MISSING = "-"


def page_of(report: ReportValues) -> str:
    """The page's text; everything that comes from outside is escaped."""
    environment = Environment(
        loader=PackageLoader("selector"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        # Not of `Markup`, which is ours.
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=count_text,
        nats=lambda value: MISSING if value is None else nats_text(value),
        percent=percent,
        seconds=seconds_text,
        anchor=anchor,
        together=together,
    )
    values: dict[str, Any] = {
        "report": report,
        "verdict": verdict(report),
        "advice": advice(report),
        "forecast": forecast(report),
        "goal": goal_text(report.goal) if report.goal else None,
        "figures": figures(report),
        "course": course_chart(report),
        "prediction": prediction_chart(report),
        "trust": trust(report),
        "made": list(how_made(report)),
        "terms": TERMS,
    }
    return environment.get_template("report.html").render(values)


def percent(share: float | None, decimals: int = 1) -> str:
    """A share in percent; a dash for none.

    >>> percent(0.4962), percent(None)
    ('49.6 %', '-')
    """
    return MISSING if share is None else f"{100 * share:.{decimals}f} %"


def together(text: str) -> Markup:
    """Escaped text in which a number and what belongs to it stay on one line.

    >>> str(together("1.7 x faster, 92.6 → 90.1 % on 2,000 images"))
    '1.7&nbsp;x faster, 92.6&nbsp;→&nbsp;90.1&nbsp;% on 2,000 images'
    """
    escaped = str(escape(printable(text)))
    return Markup(re.sub(r"(?<=→) (?=\d)|(?<=\d) (?=[x%→])", "&nbsp;", escaped))
