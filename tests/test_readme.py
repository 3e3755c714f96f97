"""The README's worked example runs as it stands there."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from selector.learning.selector import SaliencySelector
from selector.records.records import Records

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ["deep", "tapered", "wide"]


def blocks() -> list[str]:
    """The code blocks of the section that can be run, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Your own zoo\n") :]
    section = section[: section.index("\n## ", 3)]
    return re.findall(r"```(?:python|bash)\n(.*?)```", section, flags=re.DOTALL)


def test_the_example_is_a_module_a_script_and_shell_commands() -> None:
    module, python, shell = blocks()
    assert "import torch" in module
    assert "selector" in python
    assert "saliency-selector" in shell


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A user's folder with the example's module and the command on the path."""
    module, _, _ = blocks()
    (tmp_path / "my_zoo.py").write_text(module)
    command = tmp_path / "bin" / "saliency-selector"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m selector.cli "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def done(here: Path, *command: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{here}",
        "PATH": f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def check(here: Path) -> None:
    """Three networks are recorded, and a selector has learnt from them."""
    assert [p.network for p in Records.load(here / "my_records").networks] == NETWORKS
    assert SaliencySelector.load(here / "my_selector").networks_ == NETWORKS
    assert not list((here / "journal").iterdir())


@pytest.mark.slow
def test_your_own_zoo_in_python(here: Path) -> None:
    _, python, _ = blocks()
    (here / "example.py").write_text(python)
    printed = done(here, sys.executable, "example.py")
    check(here)
    assert "criterion selector" in printed
    assert re.search(r"MACs .* [34]\d\.\d%|MACs .* 50\.0%", printed)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_your_own_zoo_from_a_shell(here: Path) -> None:
    _, _, shell = blocks()
    printed = done(here, "bash", "-euc", shell)
    check(here)
    assert "my_records/wide: " in printed
    assert "learnt from" in printed
