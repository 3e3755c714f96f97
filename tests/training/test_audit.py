"""The audit of the records says what slow loops say, of all states and of own networks only."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from selector.errors import SelectorError
from selector.learning.regret import CAP, regrets
from selector.records.measurement import CandidateRecord
from selector.records.records import Records
from tests.made_records import made
from training.audit import audit as judging
from training.benchmarks.labels import records as audit
from training.reporting.result_file import RESULTS

CONTEXTS = ("unpruned", "l1-0.80", "taylor-0.50")


@pytest.fixture(scope="module")
def records() -> Records:
    """Three families, two of them with one network; three states each."""
    first = made(["a", "b"], family="x", contexts=CONTEXTS, compensated=True)
    more = made(["c"], family="y", contexts=CONTEXTS) + made(["d"], family="z", contexts=CONTEXTS)
    return first + more


def slow_agreement(rows: list[CandidateRecord]) -> float:
    distinct = list({row.set_id: row for row in rows}.values())
    if len(distinct) < 3:
        return math.nan
    halves = [[r.selection_nats for r in distinct], [r.evaluation_nats for r in distinct]]
    return float(spearmanr(*halves).statistic)


def test_every_decision_is_judged_as_in_loops(records: Records) -> None:
    judged = judging.judge(records)
    decisions = list(records.decisions())
    assert len(decisions) == len(judged.vbs) == 4 * 3 * 4 * 2
    for number, (group, _, rows) in enumerate(decisions):
        evaluation = np.minimum(regrets(np.array([r.evaluation_nats for r in rows])), CAP)
        for row, regret in zip(rows, evaluation, strict=True):
            place = list(judged.arms).index(row.arm)
            assert judged.evaluation[number, place] == pytest.approx(regret)
        chosen = min(range(len(rows)), key=lambda place: rows[place].selection_nats)
        assert judged.vbs[number] == pytest.approx(evaluation[chosen])
        winner = min(rows, key=lambda row: row.nats)
        assert judged.arms[judged.winner[number]] == winner.arm
        assert judged.agreement[number] == pytest.approx(slow_agreement(rows), nan_ok=True)
        unsaid = group.network not in ("a", "b")
        assert math.isnan(judged.compensated_agreement[number]) == unsaid
        state = judged.labels["state"][number]
        assert (
            state
            == {
                "unpruned": "unpruned",
                "l1-0.80": "70% to 100% of MACs left",
                "taylor-0.50": "0% to 70% of MACs left",
            }[group.context]
        )


def test_equal_candidates_count_once() -> None:
    one = np.array([[1.0, 1.0, 2.0, 3.0, np.nan], [1.0, 2.0, 2.0, 4.0, 5.0]])
    other = np.array([[2.0, 2.0, 1.0, 3.0, 1.0], [1.0, 3.0, 3.0, 2.0, 9.0]])
    first = np.array([[True, False, True, True, True], [True] * 5])
    found = judging._agreement(one, other, first)
    assert found[0] == pytest.approx(spearmanr([1, 2, 3], [2, 1, 3]).statistic)
    assert found[1] == pytest.approx(spearmanr(one[1], other[1]).statistic)
    assert np.isnan(judging._agreement(one, other, first & (np.arange(5) < 2))).all()


def test_the_single_best_is_chosen_without_the_family_that_it_is_judged_on(
    records: Records,
) -> None:
    judged = judging.judge(records)
    regret, best = judged.sbs()
    for family in ("x", "y", "z"):
        inside = judged.labels["family"] == family
        (chosen,) = np.unique(best[inside])
        outside = judged.both[~inside].mean(0)
        assert outside[chosen] == outside.min()
        assert np.array_equal(regret[inside], judged.evaluation[inside, chosen])
    alone = judging.judge(records.of_networks(["c"]))
    assert alone.sbs()[1][0] == alone.both.mean(0).argmin()


def test_parts_make_up_the_whole(records: Records) -> None:
    rows = audit.headroom(judging.judge(records))
    whole = rows[0]
    for label in ("family", "data set", "channels", "state"):
        parts = [row for row in rows if str(row["decisions of"]).startswith(f"{label}: ")]
        numbers = np.array([float(str(row["number"])) for row in parts])
        assert numbers.sum() == whole["number"]
        for column in ("SBS", "VBS", "median arm"):
            values = np.array([float(str(row[column])) for row in parts])
            mean = (values * numbers).sum() / numbers.sum()
            assert mean == pytest.approx(float(str(whole[column])), abs=2e-4)
    assert len([row for row in rows if str(row["decisions of"]).startswith("state: ")]) == 3


def test_wins_are_shares(records: Records) -> None:
    shares = audit.wins(judging.judge(records))
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_near_copies_are_found_by_rank(records: Records) -> None:
    arms = ["l1", "taylor", "fpgm", "absent"]
    found = judging.correlations(records, arms)
    expected = np.mean(
        [spearmanr(g.scores["l1"], g.scores["taylor"]).statistic for g in records.groups]
    )
    assert found[0, 1] == found[1, 0] == pytest.approx(expected)
    assert np.diag(found)[:3] == pytest.approx(1)
    assert np.isnan(found[3]).all()


def test_no_arm_that_always_applies_is_named(records: Records) -> None:
    judged = judging.judge(records)
    judged.both[0, :] = np.nan
    with pytest.raises(SelectorError, match="no arm was measured in every decision"):
        judged.sbs()


def test_the_summary_speaks_of_own_networks(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (records + made(["f"], origin="foreign", family="elsewhere")).save(tmp_path / "data")
    for module in ("training.benchmarks.labels.records", "training.reporting.result_file"):
        monkeypatch.setattr(f"{module}.RESULTS", tmp_path)
    audit.run(tmp_path / "data", "audit")
    summary = json.loads((tmp_path / "audit.json").read_text())["summary"]
    assert summary["networks"] == 4
    assert summary["families"] == 3
    assert summary["candidates"] == len(records.candidates)
    assert {"datasets", "split_half_correlation", "vbs_normalised_regret"} <= summary.keys()
    assert (tmp_path / "audit.png").stat().st_size > 1000
    assert RESULTS.name == "results"
