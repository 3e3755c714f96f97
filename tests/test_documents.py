"""The documents name what is there: rooms, files, links; and the README stays short."""

import inspect
import re
from pathlib import Path

import pytest

import selector

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "data/README.md", "models/README.md"]
PAGES += sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))
ROOMS = sorted(init.parent.name for init in (ROOT / "selector").glob("*/__init__.py"))


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 200


def test_the_map_names_every_room() -> None:
    text = read("docs/architecture.md")
    drawn = text[text.index("## The house") : text.index("## Where would I change")]
    assert len(ROOMS) >= 11
    for room in ROOMS:
        assert re.search(rf"^ {room}\b", drawn, flags=re.MULTILINE), f"{room} is not drawn"
        assert f"\n**{room}/**\n" in text, f"the files of {room} are not listed"


def test_the_map_names_no_file_that_is_gone() -> None:
    text = read("docs/architecture.md")
    for part in re.split(r"\n(?=\*\*)", text[text.index("## The rooms") :]):
        room = re.match(r"\*\*(\w+)/\*\*", part)
        folder = ROOT / "selector" / (room[1] if room else "")
        for name in re.findall(r"^\| `([\w/]+\.py)` ", part, flags=re.MULTILINE):
            assert (folder / name).is_file(), f"{folder.name}/{name}"
    for name in re.findall(r"`(\w+/\w+\.py)`", text):
        places = [ROOT / name, ROOT / "selector" / name, *(ROOT / "selector").glob(f"*/{name}")]
        assert any(place.is_file() for place in places), name


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", read(page)):
        if not link.startswith("https://"):
            assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_public_names_in_the_documents_exist(page: str) -> None:
    for name in re.findall(r"\bselector\.([A-Za-z_]+)\(", read(page)):
        assert name in selector.__all__, f"{page}: selector.{name}"


def test_the_readme_lists_every_option_of_prune() -> None:
    text = read("README.md")
    listed = set(re.findall(r"`(\w+)`", text[text.index("## Options") :]))
    parameters = inspect.signature(selector.prune).parameters.values()
    options = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert options <= listed, options - listed
