"""The JSON file of a benchmark: what was run, where, when, and a flat summary of numbers."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

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
