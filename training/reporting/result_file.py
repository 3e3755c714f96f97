"""The JSON file of a benchmark: what was run, where, when, and a flat summary of numbers."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from selector.errors import SelectorError

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def write_result(
    name: str,
    summary: Mapping[str, float],
    rows: Sequence[Mapping[str, object]],
    folder: Path = RESULTS,
) -> Path:
    """Write `results/NAME.json`.

    Args:
        name: Name of the benchmark.
        summary: The numbers that the documents quote.
        rows: The whole table.
        folder: Another folder than `results`, for trials.
    """
    cuda = torch.cuda.is_available()
    content = {
        "command": " ".join(["python -m training", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("saliency-selector", "torch", "torch-pruning", "lightgbm")},
        },
        "summary": dict(summary),
        "rows": [dict(row) for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def add_to_summary(name: str, found: Mapping[str, float], folder: Path = RESULTS) -> None:
    """Put numbers of another benchmark into the summary of `results/NAME.json`, if that is there.

    Args:
        name: Name of the benchmark that quotes them, which adds them itself when it is run.
        found: The numbers.
        folder: Another folder than `results`, for trials.
    """
    content = result_if_there(name, folder)
    if content is not None:
        content["summary"] |= found
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def result_if_there(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """What `results/NAME.json` says; None where it was not written yet."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def read_result(name: str, command: str, folder: Path = RESULTS) -> dict[str, Any]:
    """What `results/NAME.json` says.

    Args:
        name: Name of the benchmark.
        command: Of `python -m training`, which writes it.
        folder: Another folder than `results`, for trials.

    Raises:
        SelectorError: It was not written yet.
    """
    found = result_if_there(name, folder)
    if found is None:
        raise SelectorError(f"no {folder / f'{name}.json'}; run {command} first")
    return found
