"""The public face: its names, where they come from, and what importing it loads."""

import ast
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import selector

ROOT = Path(__file__).resolve().parents[1]
HEAVY = [
    "lightgbm",
    "scipy",
    "sklearn",
    "matplotlib",
    "pyarrow",
    "torch_pruning",
    "jinja2",
    "PIL",
    "rich",
    "pandas",
]


def imported_for_type_checkers() -> dict[str, str]:
    """Public name -> its module, from the imports that type checkers read."""
    tree = ast.parse((ROOT / "selector" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module is not None
        for alias in node.names:
            assert alias.asname == alias.name, f"{alias.name} is not re-exported"
            found[alias.name] = node.module
    return found


def test_type_checkers_and_python_see_the_same_names() -> None:
    table = {name: f"selector.{module}" for name, module in selector._MODULES.items()}
    assert table == imported_for_type_checkers()
    assert sorted(selector.__all__) == sorted(table)


@pytest.mark.parametrize("name", selector.__all__)
def test_a_public_name_is_what_its_module_defines(name: str) -> None:
    module = import_module(imported_for_type_checkers()[name])
    assert getattr(selector, name) is getattr(module, name)
    assert module.__name__ == getattr(getattr(selector, name), "__module__", module.__name__)


def test_completion_shows_the_face_only() -> None:
    for name in selector.__all__:
        getattr(selector, name)  # Its room is now an attribute of the package.
    assert dir(selector) == sorted([*selector.__all__, "__version__"])


def test_unknown_names_are_unknown() -> None:
    with pytest.raises(AttributeError, match="module 'selector' has no attribute 'purne'"):
        selector.purne  # type: ignore[attr-defined] # noqa: B018


def fresh(code: str) -> list[str]:
    """What a new interpreter prints, word by word."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()


LOADED = "print(*(name for name in sys.modules if '.' not in name))"


def test_importing_the_face_loads_nothing_heavy() -> None:
    loaded = fresh(f"import sys, selector; dir(selector); selector.__version__; {LOADED}")
    assert "selector" in loaded
    assert not set(HEAVY) & set(loaded)


def test_metrics_load_neither_boosters_nor_tables() -> None:
    """Scoring with the metrics needs PyTorch and its dependency graph only."""
    loaded = fresh(f"import sys, selector; selector.METRICS, selector.score; {LOADED}")
    assert "torch" in loaded
    assert not {"lightgbm", "sklearn", "pyarrow", "matplotlib", "jinja2", "rich"} & set(loaded)


def test_the_version_is_the_distribution_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert selector.__version__ == project["version"]


def test_star_import_gives_the_face() -> None:
    names = fresh("from selector import *; print(*(name for name in dir() if name[0] != '_'))")
    assert set(names) == set(selector.__all__)


def test_annotations_are_for_users_too() -> None:
    assert (ROOT / "selector" / "py.typed").is_file()
