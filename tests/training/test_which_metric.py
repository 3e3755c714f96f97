"""Which metric when: means over networks, by the situation of each decision."""

import json
from pathlib import Path

import numpy as np
import pytest

from selector.learning.regret import CAP, regrets
from selector.records.records import Records
from tests.made_records import made
from training.audit.audit import judge
from training.benchmarks.labels import which_metric
from training.benchmarks.labels.which_metric import situations, update_page
from training.reporting.result_file import RESULTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def records() -> Records:
    return made([f"net{number}" for number in range(6)])


def test_a_mean_is_one_over_networks(records: Records) -> None:
    """By hand, from the measured candidates: regret of each decision, then of each network."""
    audit = judge(records)
    everywhere = situations(records, audit)[0]
    assert everywhere.name == "all"
    assert everywhere.networks == len(records.networks)
    for number, arm in enumerate(audit.arms):
        if np.isnan(everywhere.regret[number]):
            continue
        by_network: dict[str, list[float]] = {}
        for group, _, rows in records.decisions():
            known = {
                r.arm: (r.selection_nats + r.evaluation_nats) / 2
                for r in rows
                if r.arm in audit.arms
            }
            line = np.array([known.get(one, np.nan) for one in audit.arms])
            regret = min(float(regrets(line)[number]), CAP)
            by_network.setdefault(group.network, []).append(regret)
        means = [float(np.mean(one)) for one in by_network.values()]
        assert everywhere.regret[number] == pytest.approx(np.mean(means)), arm
        error = np.std(means, ddof=1) / np.sqrt(len(means))
        assert everywhere.error[number] == pytest.approx(error)


def test_situations_part_the_decisions(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(which_metric, "FEWEST", 1)
    found = situations(records, judge(records))
    whole = found[0].decisions
    for label in ("layer", "place", "channels", "state", "data set"):
        parts = [one.decisions for one in found if one.name.startswith(f"{label}: ")]
        assert sum(parts) == whole, label


def test_some_arm_is_right_in_every_decision(records: Records) -> None:
    for one in situations(records, judge(records)):
        assert one.right.max() <= 1
        assert one.right.sum() >= 1 - 1e-9


def test_the_page_is_that_of_the_result_file(tmp_path: Path) -> None:
    page = tmp_path / "which-metric.md"
    original = (ROOT / "docs" / "which-metric.md").read_text(encoding="utf-8")
    page.write_text(original.replace("taylor", "nobody"), encoding="utf-8")
    update_page(page)
    begin, end = "<!-- which-metric: begin -->", "<!-- which-metric: end -->"
    found = page.read_text(encoding="utf-8")
    assert found.split(begin)[1].split(end)[0] == original.split(begin)[1].split(end)[0]
    assert (tmp_path / "pictures" / "which-metric.webp").stat().st_size > 10_000
    rows = json.loads((RESULTS / "which_metric.json").read_text())["rows"]
    assert all(f"| {row['situation']} |" in found for row in rows)
