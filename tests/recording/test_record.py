"""Records of pruned states, compensated removal and recalibration; and runs that are killed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from selector.errors import SelectorError
from selector.network.tracing import find_groups
from selector.oracle.oracle import loss_changes
from selector.pruning.prune import prune
from selector.recording.contexts import PrunedContext, draw_contexts, draw_counts, least_macs
from selector.recording.journal import InUseError
from selector.recording.record import record
from selector.records.layout import CANDIDATES_FILE, GROUPS_FILE
from selector.records.records import Records
from selector.saliency.registry import arms
from selector.saliency.scoring import lowest, score
from tests.networks import data, small, state_of

BATCHES = data(18, 6)
CONTEXT = PrunedContext("l2", 0.7)


def network() -> nn.Module:
    return small("two_consumers", 6, norm=True)


@pytest.fixture(scope="module")
def found() -> Records:
    return record(network(), BATCHES, network="one", contexts=[CONTEXT], ratios=(0.0, 0.5))


def test_the_pruned_state_is_what_prune_leaves(found: Records) -> None:
    small_one = prune(
        network(), BATCHES[0::3], criterion="l2", keep_macs=0.7, rounds=2, recalibrate=True
    ).model
    scores = score(small_one, BATCHES[0::3])
    groups = [row for row in found.groups if row.context == "l2-0.70"]
    assert {row.group for row in groups} == set(scores)
    for row in groups:
        assert row.channels == len(scores[row.group]["l1"])
        single = scores[row.group]["fisher"].numpy().astype(np.float32)
        assert np.array_equal(row.scores["fisher"], single)
        assert 0.5 < row.state.macs_kept <= 0.7
    assert {row.state.macs_kept for row in found.groups if row.context == "unpruned"} == {1.0}
    for one in [r for r in found.candidates if r.context == "l2-0.70"][:6]:
        values = scores[one.group][one.arm]
        (change,) = loss_changes(small_one, BATCHES[2::3], one.group, [lowest(values, one.count)])
        assert one.evaluation_nats == pytest.approx(change.nats, abs=1e-12)


def test_compensated_columns_are_what_the_oracle_says(found: Records) -> None:
    model, scores = network(), score(network(), BATCHES[0::3])
    rows = [row for row in found.candidates if row.context == "unpruned" and row.arm in arms()]
    for row in rows[::7]:
        channels = lowest(scores[row.group][row.arm], row.count)
        for part, nats, error in (
            (1, row.compensated_selection_nats, row.compensated_selection_error),
            (2, row.compensated_evaluation_nats, row.compensated_evaluation_error),
        ):
            (change,) = loss_changes(
                model,
                BATCHES[part::3],
                row.group,
                [channels],
                mode="compensated",
                calibration=BATCHES[0::3],
            )
            assert nats == pytest.approx(change.nats, abs=1e-12)
            assert error == pytest.approx(change.standard_error, abs=1e-12)
        assert row.compensated_evaluation_nats != row.evaluation_nats


def test_a_sample_of_decisions_is_recalibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selector.recording.measure.RECALIBRATED_SHARE", 0.4)
    rows = record(network(), BATCHES, network="one", contexts=3, seed=3).candidates
    judged = [row for row in rows if row.recalibrated_nats is not None]
    decisions = {(r.context, r.group, r.count) for r in judged}
    assert 0 < len(decisions) < len({(r.context, r.group, r.count) for r in rows})
    # Whole decisions: every arm of them.
    for row in rows:
        assert (row.recalibrated_nats is not None) == (
            (row.context, row.group, row.count) in decisions
        )
    row = next(row for row in judged if row.context == "unpruned")
    values = score(network(), BATCHES[0::3])[row.group][row.arm]
    (change,) = loss_changes(
        network(),
        BATCHES[2::3],
        row.group,
        [lowest(values, row.count)],
        mode="recalibrated",
        calibration=BATCHES[0::3],
    )
    assert row.recalibrated_nats == pytest.approx(change.nats, abs=1e-12)


def test_without_batchnorm_nothing_is_recalibrated() -> None:
    found = record(small("flatten", 5), BATCHES, network="plain", contexts=1, seed=3)
    assert all(row.recalibrated_nats is None for row in found.candidates)


def test_the_same_seed_gives_the_same_records_and_another_others() -> None:
    def made(seed: int) -> Records:
        return record(network(), BATCHES, network="one", contexts=1, seed=seed)

    assert made(1).candidates == made(1).candidates
    assert made(1).candidates != made(2).candidates
    assert made(1).networks[0].seed == 1


def test_the_network_is_left_as_found() -> None:
    model = network().train()
    before = state_of(model)
    record(model, BATCHES, network="one", contexts=1)
    assert state_of(model) == before


class Killed(BaseException):
    """What nothing catches."""


def test_a_killed_run_continues_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = record(network(), BATCHES, network="one", contexts=1)
    from selector.recording.measure import NetworkState

    whole = NetworkState.measured
    calls: list[str] = []

    def dies(self, group, ratios):  # type: ignore[no-untyped-def]
        if len(calls) == 3:
            raise Killed
        calls.append(group.name)
        return whole(self, group, ratios)

    monkeypatch.setattr(NetworkState, "measured", dies)
    with pytest.raises(Killed):
        record(network(), BATCHES, network="one", contexts=1, journal=tmp_path / "journal")
    assert len(list(tmp_path.rglob("*.json"))) == 3
    again: list[str] = []

    def counts(self, group, ratios):  # type: ignore[no-untyped-def]
        again.append(group.name)
        return whole(self, group, ratios)

    monkeypatch.setattr(NetworkState, "measured", counts)
    asked = {"network": "one", "contexts": 1, "journal": tmp_path / "journal"}
    (tmp_path / "full").write_text("no folder")
    with pytest.raises(SelectorError, match="full cannot be written"):
        record(network(), BATCHES, output=tmp_path / "full", **asked)  # type: ignore[arg-type]
    assert len(again) == len(expected.groups) - 3
    # What could not be saved is still in the journal, and nothing is measured again.
    continued = record(network(), BATCHES, output=tmp_path / "saved", **asked)  # type: ignore[arg-type]
    assert continued.candidates == expected.candidates
    assert Records.load(tmp_path / "saved").candidates == expected.candidates
    assert len(again) == len(expected.groups) - 3
    assert not list((tmp_path / "journal").iterdir())


@pytest.fixture
def begun(tmp_path: Path) -> tuple[dict[str, object], Path]:
    """A recording that was stopped after a group: how to go on, and the group's file."""
    from selector.recording.measure import NetworkState

    whole, calls = NetworkState.measured, 0

    def stops(self, group, ratios):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        return whole(self, group, ratios)

    asked = {"network": "one", "contexts": 0, "ratios": (0.25,), "journal": tmp_path}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NetworkState, "measured", stops)
        with pytest.raises(Killed):
            record(network(), BATCHES, **asked)  # type: ignore[arg-type]
    (file,) = tmp_path.rglob("*.json")
    return asked, file


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        (lambda rows: rows[:-1] and "[{", "damaged"),
        (lambda rows: json.dumps([{**rows[0], "count": "many"}]), "Expected `int`"),
        (lambda rows: json.dumps([{**rows[0], "count": 99}]), "removes 99 of"),
        (lambda rows: json.dumps([{**rows[0], "selection_error": -1.0}]), "must not be negative"),
        (lambda rows: json.dumps([{**rows[0], "group": "other"}]), "is missing"),
        (lambda rows: json.dumps([{**rows[0], "arm": "astrology"}]), "a metric that its group has"),
        (lambda rows: json.dumps({"rows": rows}), "Expected `array`"),
    ],
)
def test_a_damaged_journal_is_named(
    begun: tuple[dict[str, object], Path],
    change: Callable[[list[dict[str, object]]], str],
    culprit: str,
) -> None:
    asked, file = begun
    file.write_text(change(json.loads(file.read_text())))
    with pytest.raises(SelectorError, match=culprit) as caught:
        record(network(), BATCHES, **asked)  # type: ignore[arg-type]
    assert f"{file} is damaged" in str(caught.value)
    assert "delete this file to measure its group again" in str(caught.value)


def test_one_recording_at_a_time(begun: tuple[dict[str, object], Path]) -> None:
    asked, file = begun
    with FileLock(file.parent / "lock"), pytest.raises(InUseError, match="another process records"):
        record(network(), BATCHES, **asked)  # type: ignore[arg-type]
    record(network(), BATCHES, **asked)  # type: ignore[arg-type]


def test_a_round_trip_keeps_every_column(found: Records, tmp_path: Path) -> None:
    found.save(tmp_path)
    read = Records.load(tmp_path)
    assert read.candidates == found.candidates
    assert read.networks == found.networks
    assert [row.context for row in read.groups] == [row.context for row in found.groups]


def test_records_of_the_first_version_are_read_as_what_they_hold(
    found: Records, tmp_path: Path
) -> None:
    plain = record(network(), BATCHES, network="one", contexts=0)
    plain.save(tmp_path)
    new = ("compensated_", "recalibrated_")
    for name in (CANDIDATES_FILE, GROUPS_FILE):
        path = tmp_path / "one" / name
        table = pq.read_table(path)
        about = dict(table.schema.metadata)
        provenance = json.loads(about[b"provenance"])
        for column in ("seed", "device", "macs", "parameters", "accuracy"):
            del provenance[column]
        del about[b"sha256"]
        about |= {b"schema_version": b"1", b"provenance": json.dumps(provenance).encode()}
        kept = [c for c in table.column_names if not c.startswith(new)]
        pq.write_table(table.select(kept).replace_schema_metadata(about), path)
    read = Records.load(tmp_path)
    for old, row in zip(read.candidates, plain.candidates, strict=True):
        assert old.nats == row.nats
        assert old.compensated_selection_nats is None
    assert read.networks[0].accuracy is None


@given(st.integers(2, 600), st.integers(0, 1000))
def test_counts_are_possible_and_mostly_small(channels: int, seed: int) -> None:
    counts = draw_counts(channels, torch.Generator().manual_seed(seed))
    assert counts == sorted(set(counts))
    assert all(1 <= count < channels for count in counts)
    assert sum(count > max(1, round(0.25 * channels)) for count in counts) <= 1


@given(st.integers(0, 6), st.integers(0, 1000))
def test_contexts_spread_over_the_range_by_different_metrics(count: int, seed: int) -> None:
    drawn = draw_contexts(count, torch.Generator().manual_seed(seed))
    assert len({context.metric for context in drawn}) == len(drawn) == count
    shares = [context.keep_macs for context in drawn]
    assert shares == sorted(shares, reverse=True)
    assert all(0.39 <= share <= 0.91 for share in shares)


def test_contexts_that_cannot_be_are_refused() -> None:
    with pytest.raises(SelectorError, match="unknown metric 'tailor'"):
        PrunedContext("tailor", 0.5)
    with pytest.raises(
        SelectorError, match=r"keep_macs=1\.5 of a context must lie between 0 and 1"
    ):
        PrunedContext("l1", 1.5)


def test_contexts_have_names_of_their_own() -> None:
    near = [PrunedContext("l1", 0.801), PrunedContext("l1", 0.804), PrunedContext("l1", 0.8)]
    assert [context.name for context in near] == ["l1-0.801", "l1-0.804", "l1-0.80"]
    model = small("plain", 6)
    found = record(model, data(9, 3), network="near", ratios=(0.5,), contexts=near)
    assert {row.context for row in found.groups} == {"unpruned", *(one.name for one in near)}
    assert len({(row.context, row.group) for row in found.groups}) == len(found.groups)
    for twice in ([near[0], near[0]], [near[2], PrunedContext("l1", 0.80)]):
        with pytest.raises(SelectorError, match=f"contexts name '{twice[0].name}' twice"):
            record(model, data(9, 3), network="near", contexts=twice)


class HalfFixed(nn.Module):
    """Half of the work is in a layer that reads the images and is an output: it stays."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 60)
        self.fixed = nn.Linear(192, 60)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.stem(images).relu().mean((2, 3)))
        return found + self.fixed(images.flatten(1))


def test_states_that_cannot_be_reached_are_not_drawn() -> None:
    model = HalfFixed()
    batches = [(x.float(), y) for x, y in data(9, 3)]
    least = least_macs(find_groups(model.eval(), batches[0][0]))
    assert 0.45 < least < 0.6
    for seed in range(20):
        for context in draw_contexts(3, torch.Generator().manual_seed(seed), least):
            assert least < context.keep_macs <= 0.9
    assert draw_contexts(2, torch.Generator().manual_seed(0), 0.9) == ()
    found = record(model, batches, network="one", ratios=[0.25], contexts=2)
    assert len({row.context for row in found.groups}) == 3


@pytest.mark.parametrize("changed", ["network", "data", "loss", "ratios"])
def test_a_journal_of_another_recording_is_refused(changed: str, tmp_path: Path) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    model = network()
    asked = {"network": "one", "contexts": 0, "ratios": (0.25,), "journal": tmp_path}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selector.recording.measure.NetworkState.measured", stopped)
        with pytest.raises(KeyboardInterrupt):
            record(model, BATCHES, **asked)  # type: ignore[arg-type]
    batches = BATCHES
    if changed == "network":
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
    elif changed == "data":
        batches = [(x + 1, y) for x, y in BATCHES]
    elif changed == "loss":
        asked["loss"] = nn.CrossEntropyLoss(label_smoothing=0.5)
    else:
        asked["ratios"] = (0.5,)
    with pytest.raises(SelectorError, match="holds measurements of another network"):
        record(model, batches, **asked)  # type: ignore[arg-type]
