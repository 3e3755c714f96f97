"""Code blocks of the documents, and a user's folder in which they run as they stand there."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def blocks(page: str, *languages: str) -> list[str]:
    """The code blocks of a document in these languages, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def script_of(page: str) -> str:
    """A document's Python and shell blocks as one Python script."""
    text = (ROOT / page).read_text(encoding="utf-8")
    parts = ["import subprocess"]
    for language, code in re.findall(
        r"^```(python|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    ):
        shell = f"subprocess.run(['bash', '-euc', {code!r}], check=True)"
        parts.append(code if language == "python" else shell)
    return "\n".join(parts)


def with_command(folder: Path) -> Path:
    """The folder, with the command in `bin`."""
    command = folder / "bin" / "saliency-selector"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m selector.cli "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return folder


def done(here: Path, *command: str) -> str:
    """What a command prints that must succeed; it finds the library, and the folder's modules."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{here}",
        "PATH": f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_python(here: Path, code: str) -> str:
    """What a script prints that must succeed."""
    (here / "example.py").write_text(code)
    return done(here, sys.executable, "example.py")
