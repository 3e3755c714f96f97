"""A page as tests read it: its elements, in order, with attributes and text."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}


@dataclass
class Element:
    """One element; `text` is that of all that it holds."""

    tag: str
    attributes: dict[str, str]
    parents: tuple["Element", ...]
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def within(self, tag: str) -> bool:
        return any(parent.tag == tag for parent in self.parents)


class PageReader(HTMLParser):
    """Read a page; a tag that is not closed in its turn is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(page)
        self.close()
        assert not self._open, f"not closed: {[one.tag for one in self._open]}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names), f"an attribute of <{tag}> stands twice"
        found = Element(tag, {name: value or "" for name, value in attributes}, tuple(self._open))
        self.elements.append(found)
        if self._open:
            self._open[-1].children.append(found)
        if tag not in VOID:
            self._open.append(found)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, *tags: str) -> list[Element]:
        """Elements with one of these tags, in order."""
        return [one for one in self.elements if one.tag in tags]

    def ids(self) -> dict[str, Element]:
        """Elements by their id, which must be unique."""
        found = [one for one in self.elements if "id" in one.attributes]
        names = [one.attributes["id"] for one in found]
        assert len(set(names)) == len(names), sorted({x for x in names if names.count(x) > 1})
        return dict(zip(names, found, strict=True))

    def table(self, caption: str) -> list[list[str]]:
        """The cells of the body of the table whose caption holds these words."""
        (found,) = [x for x in self.all("table") if caption in x.children[0].text]
        rows = [x for x in self.all("tr") if found in x.parents and x.within("tbody")]
        return [[cell.text.strip() for cell in row.children] for row in rows]
