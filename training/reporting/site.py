"""MkDocs hook: files of the repository that the documents link to become part of the site.

The documents are read in the repository as well, where `../data/README.md` is a link that works.
The site gets a copy of each such file under `repository/`, and the link is turned to it.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "repository"
LINK = re.compile(r"(\]\()((?:\.\./)+)([^)#\s]+)((?:#[^)\s]*)?\))")
"""A Markdown link that leads upwards: opening, dots, path, anchor and end."""


def linked_files(text: str, page: Path) -> list[Path]:
    """Files outside the documents' folder that a page links to, relative to the repository.

    Args:
        text: Markdown.
        page: Where it stands, absolute.
    """
    found = []
    for _, up, rest, _ in LINK.findall(text):
        target = (page.parent / up / rest).resolve()
        if target.is_file() and not target.is_relative_to(ROOT / "docs"):
            found.append(target.relative_to(ROOT))
    return found


def site_name(file: Path) -> str:
    """Where a file of the repository stands in the site.

    >>> site_name(Path("data/README.md")), site_name(Path("training/a.json"))
    ('repository/data/README.md', 'repository/training/a.json')
    """
    return f"{FOLDER}/{file.as_posix()}"


def turned(text: str, page: Path) -> str:
    """The same Markdown with such links turned to the copies in the site."""

    def turn(match: re.Match[str]) -> str:
        opening, up, rest, end = match.groups()
        target = (page.parent / up / rest).resolve()
        if not target.exists() or target.is_relative_to(ROOT / "docs"):
            return match[0]
        return f"{opening}{site_name(target.relative_to(ROOT))}{end}"

    return LINK.sub(turn, text)


def on_files(files: Any, config: Any) -> Any:
    """Add the linked files; MkDocs calls this once with all files of the site."""
    from mkdocs.structure.files import File

    wanted: dict[str, Path] = {}
    for file in files.documentation_pages():
        page = Path(file.abs_src_path)
        for found in linked_files(page.read_text(encoding="utf-8"), page):
            wanted[site_name(found)] = found
    for name, path in sorted(wanted.items()):
        if path.suffix == ".md":
            # Their own links lead through the repository; as plain text they stay true.
            text = re.sub(
                r"\[([^]]+)\]\((?!https?:)[^)]+\)", r"\1", (ROOT / path).read_text("utf-8")
            )
            files.append(File.generated(config, name, content=text))
        else:
            files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn the links of one page; MkDocs calls this for each."""
    if page.file.src_uri.startswith(FOLDER):
        return markdown
    return turned(markdown, Path(page.file.abs_src_path))
