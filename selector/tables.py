"""Rows and columns as text, for everything that is printed."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from selector.errors import SelectorError

if TYPE_CHECKING:
    from pandas import DataFrame

WIDTH = 80
"""Columns of a terminal that tables fit into, unless single words are too long for that."""

NAMES, WORDS = 24, 14
"""Names in the first column, and text in others, are not broken up to these lengths."""


def printable(text: str) -> str:
    r"""Text in which what a terminal would obey, and not print, is written out.

    Names come from files of others: one may hold a sequence that hides or recolours what follows.

    >>> print(printable("conv\x1b[8m1"))
    conv\x1b[8m1
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in text)


def text_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", width: int = WIDTH
) -> str:
    """A plain-text table; columns after the first are aligned to the right where they hold numbers.

    Columns after the first that hold nothing but dashes are left out. Text is wrapped so that the
    table fits the width; numbers never are.

    >>> print(text_table(["layer", "channels"], [["conv1", "16"], ["conv2", "8"]]))
      layer   channels
     ──────────────────
      conv1         16
      conv2          8
    """
    # Loaded when a table is printed: it takes longer than the rest of the package.
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    rows = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    shown = [n for n in range(len(columns)) if n == 0 or not _is_dead([row[n] for row in rows])]
    cells = [[columns[n], *(row[n] for row in rows)] for n in shown]
    numeric = [n > 0 and all(map(_is_number, column[1:])) for n, column in enumerate(cells)]
    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=True)
    for right, column, room in zip(numeric, cells, _widths(cells, numeric, width), strict=True):
        column[:] = ["\n".join(_wrapped(cell, room)) for cell in column]
        table.add_column(column[0], justify="right" if right else "left", no_wrap=True)
    for row in zip(*(column[1:] for column in cells), strict=True):
        table.add_row(*row)
    console = Console(width=10_000, color_system=None, force_terminal=False, markup=False)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join(line for line in lines if line)


def _widths(columns: Sequence[Sequence[str]], numeric: Sequence[bool], width: int) -> list[int]:
    """How wide every column may be; the first cell of each is its heading.

    Numbers and names in the first column are never broken; columns of text share what is left.
    """
    found = []
    for number, (right, column) in enumerate(zip(numeric, columns, strict=True)):
        longest = max((len(cell) for cell in column[1:]), default=0)
        heading = max(map(len, column[0].split()), default=0)
        if right:
            found.append(max(longest, heading, min(9, len(column[0]))))
        else:
            found.append(max(longest, heading if number else len(column[0])))
    text = [n for n, right in enumerate(numeric) if not right]
    left = width - 2 - 3 * len(columns) - sum(found) + sum(found[n] for n in text)
    for place, number in enumerate(sorted(text, key=lambda n: found[n])):
        share = max(left // (len(text) - place), NAMES if number == 0 else WORDS)
        found[number] = min(found[number], share)
        left -= found[number]
    return found


def _wrapped(text: str, width: int) -> list[str]:
    """Text in lines of a width, broken at spaces, and long names after underscores and dots.

    >>> _wrapped("l1 3, taylor_squared 7", 10)
    ['l1 3,', 'taylor_', 'squared 7']
    """
    lines = [""]
    for word in text.split(" "):
        parts = [word] if len(word) <= width else re.findall(r"[^_./]*[_./]+|[^_./]+", word)
        for number, part in enumerate(parts):
            gap = " " if number == 0 and lines[-1] else ""
            if lines[-1] and len(lines[-1]) + len(gap) + len(part) > width:
                lines.append("")
                gap = ""
            lines[-1] += gap + part
            while len(lines[-1]) > width:
                lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return lines


def html_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> str:
    """The same table as HTML, for notebooks.

    >>> html_table(["layer"], [["a<b"]])
    '<table><thead><tr><th>layer</th></tr></thead><tbody><tr><td>a&lt;b</td></tr></tbody></table>'
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    shown = [n for n in range(len(columns)) if n == 0 or not _is_dead([row[n] for row in rows])]
    head = "".join(f"<th>{escape(columns[n])}</th>" for n in shown)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(row[n])}</td>' for n in shown)}</tr>" for row in rows
    )
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def data_frame(rows: Sequence[Mapping[str, object]]) -> "DataFrame":
    """Rows as a pandas table.

    Raises:
        SelectorError: pandas is not installed.
    """
    try:
        import pandas  # Not among the requirements: few need it.
    except ImportError as error:
        raise SelectorError("to_pandas needs pandas: pip install pandas") from error
    return pandas.DataFrame(list(rows))


def _is_dead(cells: Sequence[str]) -> bool:
    """Whether a column says nothing: there are rows, and none has a value."""
    return bool(cells) and all(cell in ("", "-") for cell in cells)


def _is_number(text: str) -> bool:
    return text in ("", "-") or text.strip("+-%").replace(".", "").replace(",", "").isdigit()


def count_text(value: float) -> str:
    """A large count as a person reads it.

    >>> count_text(41_300_000), count_text(272_474), count_text(12)
    ('41.3 M', '272 k', '12')
    """
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.1f} {unit}"
    return f"{value:.0f}"


def nats_text(value: float | None) -> str:
    """A loss change with its sign; a dash for None."""
    return "-" if value is None else f"{value:+.4f}"
