"""What importing the package costs, over importing PyTorch: each time in a new interpreter."""

import statistics
import subprocess
import sys
from pathlib import Path

from training.reporting.result_file import RESULTS, write_result

REPEATS = 7
_STATEMENTS = {
    "import selector": "import selector",
    "selector.score": "import selector; selector.score",
    "selector.prune": "import selector; selector.prune",
}
"""What is timed, in the words of a user -> the code."""
_TIMED = (
    "import time, torch; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
)


def run(repeats: int = REPEATS, folder: Path = RESULTS) -> dict[str, float]:
    """Time the imports in turns, print and write them.

    Args:
        repeats: New interpreters for each statement.
        folder: Where the result file goes.

    Returns:
        Seconds beyond `import torch` for each statement, the median.
    """
    times: dict[str, list[float]] = {name: [] for name in _STATEMENTS}
    for _ in range(repeats):
        for name, code in _STATEMENTS.items():
            times[name].append(_seconds(code))
    medians = {name: statistics.median(found) for name, found in times.items()}
    rows = [{"statement": name, "seconds": found} for name, found in times.items()]
    write_result("imports", medians, rows, folder)
    for name, seconds in medians.items():
        print(f"{name}: {seconds:.3f} s beyond import torch")
    return medians


def _seconds(code: str) -> float:
    """Time of the code in a new interpreter that has imported PyTorch."""
    command = [sys.executable, "-c", _TIMED.format(code=code)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
