"""Rows and columns as text, for everything that is printed."""

from collections.abc import Sequence


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> str:
    """A plain-text table; columns after the first are aligned to the right where they hold numbers.

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

    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=True)
    for number, column in enumerate(columns):
        numeric = number > 0 and all(_is_number(row[number]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(width=240, color_system=None, force_terminal=False, markup=False)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join(line for line in lines if line)


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
