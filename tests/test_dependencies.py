"""What the package needs: each requirement is used, bounded from below, and of a known licence."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from tests.packaging.lowest import lowest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES = {"pillow": "PIL", "scikit-learn": "sklearn"}
"""Distributions that are imported under another name."""
FREE = r"apache|mit\b|bsd|hpnd|psf|mpl|isc|python software|unlicense|cc0"


def required() -> list[tuple[str, str]]:
    found = [re.match(r"([\w-]+)(.*)", text) for text in PROJECT["dependencies"]]
    return [(one[1], one[2]) for one in found if one]


@pytest.mark.parametrize(("name", "bounds"), required())
def test_every_requirement_is_used_and_bounded_from_below(name: str, bounds: str) -> None:
    assert bounds.startswith(">=")
    module = NAMES.get(name, name.replace("-", "_"))
    pattern = re.compile(rf"^\s*(import|from) {module}\b", re.MULTILINE)
    sources = (ROOT / "selector").rglob("*.py")
    assert any(pattern.search(path.read_text(encoding="utf-8")) for path in sources)


def test_the_oldest_versions_are_those_of_the_bounds() -> None:
    """`make test-lowest` installs these."""
    bounds = dict(required())
    found = dict(text.split("==") for text in lowest())
    assert bounds.keys() - found.keys() == {"torch"}
    for name, version in found.items():
        assert bounds[name].split(",")[0] == f">={version}"


STATED = ("License-Expression", "License")
"""Fields of a distribution's metadata that state its licence."""


@pytest.mark.parametrize("name", [name for name, _ in required()])
def test_every_requirement_has_a_free_licence(name: str) -> None:
    about = metadata.metadata(name)
    classifiers = [c for c in about.get_all("Classifier") or () if c.startswith("License")]
    stated = [text for field in STATED for text in about.get_all(field) or ()]
    said = " ".join([*stated, *classifiers])
    assert re.search(FREE, said, re.IGNORECASE), said[:200]


def test_every_requirement_is_listed_with_its_licence() -> None:
    lines = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    listed = {name: row[2] for row in rows for name in row[0].split(", ")}
    for name, _ in required():
        assert re.search(FREE, listed[name], re.IGNORECASE), name
    assert listed.keys() - dict(required()).keys() == {"package", "---"}
