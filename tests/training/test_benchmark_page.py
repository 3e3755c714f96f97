"""The page of benchmarks holds what the result files say, table after table."""

from collections.abc import Callable
from pathlib import Path

import pytest

from training.__main__ import BENCHMARKS
from training.benchmarks.finetuned import report as finetuned
from training.benchmarks.repair import criteria, settings
from training.benchmarks.repair import report as repair
from training.reporting.result_file import RESULTS


@pytest.mark.parametrize(
    "update",
    [repair.update_page, settings.update_page, criteria.update_page, finetuned.update_page],
    ids=lambda update: update.__module__.rsplit(".", 1)[0],
)
def test_writing_the_table_again_changes_nothing(
    update: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(BENCHMARKS.read_text())
    update(page, RESULTS)
    assert page.read_text() == BENCHMARKS.read_text()
