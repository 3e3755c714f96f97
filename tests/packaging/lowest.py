"""The oldest versions that `pyproject.toml` admits, as requirements for pip; torch is left out.

    python tests/packaging/lowest.py > lowest.txt
    pip install --no-deps --target FOLDER --requirement lowest.txt

Tests that run with the folder first on the path run with these versions.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LARGE = {"torch"}
"""Several gigabytes: what is installed serves."""


def lowest(project: Path = ROOT / "pyproject.toml") -> list[str]:
    """`name==version` of every requirement of the package, with the version behind its `>=`."""
    stated = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    found = [re.match(r"([\w-]+)>=([\w.]+)", text) for text in stated]
    return [f"{one[1]}=={one[2]}" for one in found if one and one[1] not in LARGE]


if __name__ == "__main__":
    print("\n".join(lowest()))
