"""The wheel is small, and works where it is installed: from any folder, and for type checkers."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

import selector

ROOT = Path(__file__).resolve().parents[2]
STRANGER = Path(__file__).with_name("stranger.py")
MOST_BYTES = 5_000_000


def test_the_stranger_uses_the_whole_face() -> None:
    tree = ast.parse(STRANGER.read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "selector"
    }
    assert set(selector.__all__) <= used


def test_the_metadata_names_extras_and_versions_of_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"onnx", "report", "dask", "ray", "docs", "dev"} <= set(project["optional-dependencies"])
    named = {line.rsplit(" ", 1)[1] for line in project["classifiers"] if "Python :: 3." in line}
    assert named == {"3.11", "3.12", "3.13"}
    assert project["requires-python"] == ">=3.11"


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that holds the wheel, and what it needs by a path.

    What the wheel requires is not downloaded again: it is found in this environment.
    """
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed, and builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: building leaves nothing in the sources.
    ignored = shutil.ignore_patterns(".*", "tests", "training", "docs", "*.egg-info")
    shutil.copytree(ROOT, folder / "sources", ignore=ignored)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, folder / "sources"],
        capture_output=True,
        text=True,
    )
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("hatchling cannot be had here, and builds the wheel")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    assert wheel.stat().st_size < MOST_BYTES
    venv.create(folder / "environment", with_pip=True)
    binaries = folder / "environment" / "bin"
    run(binaries / "pip", "install", "-q", "--no-deps", wheel, cwd=folder)
    (site,) = (folder / "environment" / "lib").glob("python*/site-packages")
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return binaries


@pytest.mark.slow
def test_the_command_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    where = run(
        installed / "python", "-c", "import selector; print(selector.__file__)", cwd=tmp_path
    )
    assert Path(where.strip()).is_relative_to(installed.parent)
    command = installed / "saliency-selector"
    assert run(command, "--version", cwd=tmp_path) == f"saliency-selector {selector.__version__}\n"
    assert "all is well" in run(command, "doctor", cwd=tmp_path)
    shown = run(command, "demo", cwd=tmp_path)
    assert "selector, verify=3" in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_stranger_s_file_runs(installed: Path, tmp_path: Path) -> None:
    run(installed / "python", STRANGER, tmp_path, cwd=tmp_path)
    assert {"plan.json", "rounds.csv", "small.pt2"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_mypy_passes_a_stranger_s_file(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    shutil.copy(STRANGER, tmp_path)
    options = ["--strict", "--config-file=", "--python-executable", installed / "python"]
    run(sys.executable, "-m", "mypy", *options, "stranger.py", cwd=tmp_path)


@pytest.mark.slow
def test_pyright_passes_a_stranger_s_file(installed: Path, tmp_path: Path) -> None:
    pyright = shutil.which("pyright")
    if pyright is None:
        pytest.skip("pyright is not installed")
    shutil.copy(STRANGER, tmp_path)
    run(pyright, "--pythonpath", installed / "python", "stranger.py", cwd=tmp_path)
