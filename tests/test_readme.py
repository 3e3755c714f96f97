"""The examples of the README and of docs/own-zoo.md run as they stand there."""

import re
import shutil
from pathlib import Path

import pytest

from selector.learning.selector import SaliencySelector
from selector.records.records import Records
from tests.pages import blocks, done, run_python, with_command

NETWORKS = ["deep", "tapered", "wide"]
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A user's folder with the command on the path."""
    return with_command(tmp_path)


def test_the_readme_s_python_runs(here: Path) -> None:
    printed = run_python(here, "\n".join(blocks("README.md", "python")))
    assert "asked keep_macs=0.5" in printed
    assert "conv1" in printed
    assert (here / "small.safetensors").is_file()
    assert "<svg" in (here / "report.html").read_text()


@pytest.mark.slow
@needs_bash
def test_the_readme_s_commands_run(here: Path) -> None:
    (shell,) = blocks("README.md", "bash")
    printed = done(here, "bash", "-euc", shell)
    assert "asked keep_macs=0.5" in printed
    assert (here / "small.safetensors").is_file()
    assert (here / "report.html").is_file()


def own_zoo() -> tuple[str, str, str]:
    """The module, the script and the shell commands of docs/own-zoo.md."""
    module, python, shell = blocks("docs/own-zoo.md", "python", "bash")
    return module, python, shell


def test_the_own_zoo_is_a_module_a_script_and_shell_commands() -> None:
    module, python, shell = own_zoo()
    assert "import torch" in module
    assert "selector" in python
    assert "saliency-selector" in shell


def check_own_zoo(here: Path) -> None:
    """Three networks are recorded, and a selector has learnt from them."""
    assert [p.network for p in Records.load(here / "my_records").networks] == NETWORKS
    assert SaliencySelector.load(here / "my_selector").networks_ == NETWORKS
    assert not list((here / "journal").iterdir())


@pytest.mark.slow
def test_your_own_zoo_in_python(here: Path) -> None:
    module, python, _ = own_zoo()
    (here / "my_zoo.py").write_text(module)
    printed = run_python(here, python)
    check_own_zoo(here)
    assert "criterion selector" in printed
    assert re.search(r"MACs .* [34]\d\.\d%|MACs .* 50\.0%", printed)


@pytest.mark.slow
@needs_bash
def test_your_own_zoo_from_a_shell(here: Path) -> None:
    module, _, shell = own_zoo()
    (here / "my_zoo.py").write_text(module)
    printed = done(here, "bash", "-euc", shell)
    check_own_zoo(here)
    assert "my_records/wide: " in printed
    assert "learnt from" in printed
