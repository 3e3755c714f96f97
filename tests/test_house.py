"""The README's map names every file of the package, and imports only point down it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "selector"


def places() -> dict[str, int]:
    found: dict[str, int] = {}
    for number, line in enumerate((ROOT / "README.md").read_text().splitlines()):
        if line.startswith("| `") and ".py`" in line.split("|")[1]:
            found |= dict.fromkeys(re.findall(r"`(\w+)\.py`", line.split("|")[1]), number)
    return found


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "selector":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("selector."):
            found.add(str(node.module).split(".")[1])
    return found


def test_the_map_names_every_file_and_no_other() -> None:
    assert set(places()) == {p.stem for p in PACKAGE.glob("*.py")} - {"__init__"}


def test_imports_only_point_down_the_map() -> None:
    found = places()
    wrong = [
        f"{path.stem} imports {name}"
        for path in PACKAGE.glob("*.py")
        if path.stem != "__init__"
        for name in imported(path)
        if found[name] < found[path.stem]
    ]
    assert wrong == []
    assert len(found) > 30
