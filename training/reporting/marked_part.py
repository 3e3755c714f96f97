"""Parts of documents that are written from result files, between two marks each."""

from pathlib import Path

from selector.errors import SelectorError
from selector.files import write_text


def put(page: Path, name: str, text: str) -> None:
    """Put a text between the marks of a name.

    Args:
        page: The file.
        name: Of the part: it stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
        text: Markdown.

    Raises:
        SelectorError: No such marks.
    """
    start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    whole = page.read_text(encoding="utf-8")
    if start not in whole or end not in whole:
        raise SelectorError(f"{page} has no lines {start} and {end} to put the text between")
    head, tail = whole.split(start)[0], whole.split(end)[1]
    write_text(page, f"{head}{start}\n{text}\n{end}{tail}")
