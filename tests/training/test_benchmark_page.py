"""The pages of benchmarks and metrics hold what the result files say, table after table."""

from collections.abc import Callable
from pathlib import Path

import pytest

from training.__main__ import BENCHMARKS, METRICS
from training.benchmarks.finetuned import report as finetuned
from training.benchmarks.repair import criteria, settings
from training.benchmarks.repair import report as repair
from training.benchmarks.speed import saliency
from training.benchmarks.whole import page as widths
from training.reporting.result_file import RESULTS


@pytest.mark.parametrize(
    ("update", "document"),
    [
        (repair.update_page, BENCHMARKS),
        (settings.update_page, BENCHMARKS),
        (criteria.update_page, BENCHMARKS),
        (finetuned.update_page, BENCHMARKS),
        (saliency.update_page, METRICS),
        (widths.update_page, BENCHMARKS),
    ],
    ids=["repair", "settings", "criteria", "finetuned", "saliency", "widths"],
)
def test_writing_the_table_again_changes_nothing(
    update: Callable[[Path, Path], None], document: Path, tmp_path: Path
) -> None:
    page = tmp_path / document.name
    page.write_text(document.read_text())
    update(page, RESULTS)
    assert page.read_text() == document.read_text()
