"""The table of criteria after repair: means over the networks that every criterion was run on."""

import math
from dataclasses import replace

import pytest

from training.benchmarks.repair.criteria import (
    KEPT,
    NAMES,
    VERSION,
    CriterionRun,
    table_of,
)


def runs_of(network: str, base: float) -> list[CriterionRun]:
    return [
        CriterionRun(network, "learn", name, keep, VERSION, 0.9, base, base + 0.01 * number)
        for number, name in enumerate(NAMES)
        for keep in KEPT
    ]


def test_means_are_over_networks_that_all_criteria_were_run_on() -> None:
    whole = [*runs_of("one", 0.2), *runs_of("two", 0.4)]
    half = runs_of("three", 0.9)[:-1]
    failed = [replace(one, failed="no") for one in runs_of("four", 0.9)]
    rows, summary = table_of([*whole, *half, *failed])
    assert summary["networks"] == 2
    for number, name in enumerate(NAMES):
        for keep in KEPT:
            assert summary[f"{name}, {keep:.0%}, pruned"] == pytest.approx(0.3)
            assert summary[f"{name}, {keep:.0%}, repaired"] == pytest.approx(0.3 + 0.01 * number)
    assert [row[0] for row in rows] == list(NAMES)
    assert rows[2][1:] == ["30.0", "32.0", "30.0", "32.0"]


def test_nothing_is_said_of_no_network() -> None:
    _, summary = table_of(runs_of("one", 0.2)[:3])
    assert summary["networks"] == 0
    assert math.isnan(summary["l1, 50%, repaired"])


def test_runs_are_read_as_they_were_written() -> None:
    one = runs_of("one", 0.2)[0]
    assert CriterionRun.of(vars(one)) == one
