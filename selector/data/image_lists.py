"""Images that a CSV file lists: the path of each, and its label."""

import csv
from collections.abc import Iterator
from pathlib import Path

from selector.data.image_rows import ImageRows, Row, content
from selector.data.image_tables import Columns
from selector.errors import SelectorError

PATH_COLUMNS = ("path", "image", "file", "filename", "file_name", "filepath", "image_path")
LABEL_COLUMNS = ("label", "class", "target")
"""What columns are called, unless they are named."""


def csv_rows(path: Path, columns: Columns, *, needed: bool) -> ImageRows:
    """The images that a CSV or TSV file with a heading lists.

    Paths are relative to the file's folder. Labels are whole numbers from 0, or names, which are
    then numbered in the order of the alphabet.

    Args:
        path: The file.
        columns: Which hold what.
        needed: Whether there must be labels.

    Raises:
        SelectorError: No such file, no text, or no such column.
    """
    heading, lines = _read(path)
    image = _named(path, heading, columns.image, PATH_COLUMNS, "image_column")
    label: str | None = None
    if columns.label is not None or needed or set(LABEL_COLUMNS) & set(heading):
        label = _named(path, heading, columns.label, LABEL_COLUMNS, "label_column")
    given = [] if label is None else [line.get(label) for line in lines]
    numbered = all(one is not None and one.strip().isdecimal() for one in given)
    names = None if numbered else tuple(sorted({one for one in given if one}))

    def read(start: int, stop: int) -> Iterator[Row]:
        for number, line in enumerate(lines[start:stop], start):
            file, text = line.get(image), None if label is None else line.get(label)
            where = f"line {number + 2}"
            if not file:
                raise SelectorError(f"{path}: {where} names no image")
            value = int(text) if text is not None and numbered else text
            yield Row(f"{where} ({file})", content(path.parent / file, str(path)), value)

    return ImageRows(str(path), len(lines), read, names, label is not None)


def _read(path: Path) -> tuple[list[str], list[dict[str, str | None]]]:
    """The names of the columns, and the lines after them."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            lines = list(reader)
            return list(reader.fieldnames or ()), lines
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SelectorError(f"{path} cannot be read as CSV: {error}") from error


def _named(
    path: Path, heading: list[str], asked: str | None, usual: tuple[str, ...], option: str
) -> str:
    found = next((name for name in ([asked] if asked else usual) if name in heading), None)
    if found is None:
        raise SelectorError(
            f"{path} has no column {asked or ' or '.join(usual[:2])}; its first line names: "
            f"{', '.join(heading)}; name the right one ({option}=..., or the option of that name)"
        )
    return found
