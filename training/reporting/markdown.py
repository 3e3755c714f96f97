"""Tables as Markdown, and the cells of printed ones."""

from collections.abc import Iterable, Mapping, Sequence


def cell(value: object, form: str = ".3f") -> str:
    """A value of a result file as text: numbers in a form, a dash for None, counts by name.

    >>> cell(0.12345), cell(1234.5, ".3g"), cell(7), cell(None), cell({"conv1": 2.0, "conv2": 1})
    ('0.123', '1.23e+03', '7', '-', 'conv1 2, conv2 1')
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {count:g}" for name, count in value.items())
    if value is None:
        return "-"
    return f"{value:{form}}" if isinstance(value, float) else str(value)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a Markdown table.

    >>> print(markdown_table(["method", "regret"], [["random", "1.7"]]))
    | method | regret |
    | --- | --- |
    | random | 1.7 |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_list(lines: Iterable[str]) -> str:
    """Lines as the items of a list."""
    return "\n".join(f"- {line}" for line in lines)


def percent_text(share: float | None) -> str:
    """A share of 1 in percent, without the sign; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f}"
