"""Records: what is measured, and that a file holds all of it or is not there."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from selector.errors import SelectorError
from selector.learning.features import describe, feature_names
from selector.oracle.oracle import loss_changes
from selector.recording.record import record
from selector.records.layout import CANDIDATES_FILE, GROUPS_FILE
from selector.records.records import Records
from selector.saliency.registry import arms, first_order_metrics
from selector.saliency.scoring import lowest, score
from tests.networks import data, small, state_of

RATIOS = (0.0, 0.5)


def recorded_one() -> Records:
    return record(
        small("two_consumers", 5, norm=True),
        data(9, 3),
        network="one",
        family="a",
        ratios=RATIOS,
        contexts=0,
    )


@pytest.fixture(scope="module")
def found() -> Records:
    """Two networks, one of them without BatchNorm."""
    one = recorded_one()
    other = record(
        small("flatten", 4), data(9, 3), network="other", family="b", ratios=RATIOS, contexts=0
    )
    return one + other


def test_a_record_is_what_score_and_oracle_say_of_disjoint_parts(found: Records) -> None:
    model, batches = small("two_consumers", 5, norm=True), data(9, 3)
    scores = score(model, batches[0::3])
    seen = 0
    for group, decision, rows in found.of_networks(["one"]).decisions():
        for metric, values in group.scores.items():
            single = scores[group.group][metric].numpy().astype(np.float32)
            assert np.array_equal(values, single)
        for row in rows:
            channels = lowest(torch.from_numpy(decision.scores[row.arm]), row.count)
            (selection,) = loss_changes(model, batches[1::3], row.group, [channels])
            (evaluation,) = loss_changes(model, batches[2::3], row.group, [channels])
            assert row.selection_nats == pytest.approx(selection.nats, abs=1e-12)
            assert row.selection_error == pytest.approx(selection.standard_error, abs=1e-12)
            assert row.evaluation_nats == pytest.approx(evaluation.nats, abs=1e-12)
            assert row.evaluation_error == pytest.approx(evaluation.standard_error, abs=1e-12)
            assert row.nats == pytest.approx((selection.nats + evaluation.nats) / 2)
            seen += 1
    assert seen > 20


def test_every_metric_of_every_group_is_a_candidate_at_every_ratio(found: Records) -> None:
    by_group = {(g.network, g.group): g for g in found.groups}
    for group, decision, rows in found.decisions():
        assert {row.arm for row in rows} == {*arms(), "rank_mean", "random"} & set(group.scores)
        assert set(first_order_metrics()) - set(group.scores) <= {"batchnorm_scale"}
        assert 1 <= decision.count < group.channels
        ids: dict[int, tuple[int, ...]] = {}
        for row in rows:
            channels = lowest(torch.from_numpy(decision.scores[row.arm]), row.count)
            assert ids.setdefault(row.set_id, channels) == channels
        assert len(set(ids.values())) == len(ids)
    counts = {(r.network, r.group, r.count) for r in found.candidates}
    for (network, name), group in by_group.items():
        assert {c for n, g, c in counts if (n, g) == (network, name)} == {
            1,
            round(0.5 * group.channels),
        }


def test_recording_leaves_the_network_as_found() -> None:
    model = small("residual", norm=True).train()
    model.stem.weight.requires_grad_(False)
    before = state_of(model)
    record(model, data(9, 3), network="left", ratios=(0.0,))
    assert state_of(model) == before


def same(one: Records, other: Records) -> bool:
    groups = zip(one.groups, other.groups, strict=True)
    return (
        one.networks == other.networks
        and one.candidates == other.candidates
        and all(
            (a.network, a.context, a.group, a.channels, a.facts, a.state)
            == (b.network, b.context, b.group, b.channels, b.facts, b.state)
            and a.scores.keys() == b.scores.keys()
            and all(np.array_equal(a.scores[m], b.scores[m]) for m in a.scores)
            for a, b in groups
        )
    )


def test_a_round_trip_gives_the_same_records(found: Records, tmp_path: Path) -> None:
    found.save(tmp_path)
    assert same(Records.load(tmp_path), found)
    assert same(Records.load(tmp_path / "one"), found.of_networks(["one"]))
    assert not same(Records.load(tmp_path / "one"), found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


def test_what_was_read_can_be_described(found: Records, tmp_path: Path) -> None:
    found.save(tmp_path)
    for _, decision, rows in Records.load(tmp_path).decisions():
        proposals = {r.arm: lowest(torch.from_numpy(decision.scores[r.arm]), r.count) for r in rows}
        metrics = first_order_metrics()
        features = describe(decision, proposals, metrics)
        assert features.shape == (len(rows), len(feature_names(metrics)))


def test_a_write_that_fails_leaves_nothing(
    found: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    write = pq.write_table

    def second_fails(*args: object, **options: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("the disk is full")
        write(*args, **options)

    monkeypatch.setattr(pq, "write_table", second_fails)
    with pytest.raises(SelectorError, match="cannot be written: the disk is full"):
        found.of_networks(["one"]).save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SelectorError, match="no records in"):
        Records.load(tmp_path)
    found.of_networks(["one"]).save(tmp_path)
    assert same(Records.load(tmp_path), found.of_networks(["one"]))


def test_nothing_is_overwritten(found: Records, tmp_path: Path) -> None:
    found.of_networks(["other"]).save(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")}
    with pytest.raises(SelectorError, match=r"other exists; choose another network name or folder"):
        found.save(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")} == before


@pytest.mark.parametrize("name", [GROUPS_FILE, CANDIDATES_FILE])
def test_another_schema_version_is_refused(found: Records, tmp_path: Path, name: str) -> None:
    found.save(tmp_path)
    path = tmp_path / "one" / name
    table = pq.read_table(path)
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, b"schema_version": b"99"}), path
    )
    with pytest.raises(SelectorError, match=rf"{name} has records schema 99, .* record the net"):
        Records.load(tmp_path)


@pytest.mark.parametrize("name", [GROUPS_FILE, CANDIDATES_FILE])
def test_a_damaged_file_is_named(found: Records, tmp_path: Path, name: str) -> None:
    found.save(tmp_path)
    path = tmp_path / "one" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SelectorError, match=f"one/{name} cannot be read as Parquet"):
        Records.load(tmp_path)


def test_a_missing_half_is_named(found: Records, tmp_path: Path) -> None:
    found.save(tmp_path)
    (tmp_path / "other" / GROUPS_FILE).unlink()
    with pytest.raises(SelectorError, match=f"other/{GROUPS_FILE}"):
        Records.load(tmp_path)


def test_parquet_of_somebody_else_is_named(found: Records, tmp_path: Path) -> None:
    found.save(tmp_path)
    path = tmp_path / "one" / CANDIDATES_FILE
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["arm"]), path)
    with pytest.raises(SelectorError, match="one holds no records of ours"):
        Records.load(tmp_path)


def test_a_network_is_in_one_set_only(found: Records) -> None:
    with pytest.raises(SelectorError, match=r"network 'one' is in both sets.*another name"):
        found + found.of_networks(["one"])


def test_metrics_that_the_first_group_lacks_are_kept(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(80, 5),
    ).double()
    found = record(model.eval(), data(9, 3), network="one", ratios=RATIOS, contexts=0)
    found.save(tmp_path)
    kept = {group.group: set(group.scores) for group in Records.load(tmp_path).groups}
    assert kept == {group.group: set(group.scores) for group in found.groups}
    assert "batchnorm_scale" in kept["2"]
    assert "batchnorm_scale" not in kept["0"]


def test_provenance_names_the_versions(found: Records) -> None:
    first = found.networks[0]
    assert (first.network, first.family, first.images) == ("one", "a", 3)
    assert json.loads(first.versions)["metrics"] == first_order_metrics()
    assert asdict(replace(first, network="x"))["network"] == "x"


def test_the_same_network_gives_the_same_records(found: Records) -> None:
    again = recorded_one()
    assert same(again, found.of_networks(["one"]))


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"network": ""}, "network='' must be the name of a folder"),
        ({"network": "a/b"}, "network='a/b' must be the name of a folder"),
        ({"network": "x", "ratios": (0.5, 1.0)}, r"ratio 1.0 is outside \[0, 1\)"),
        ({"network": "x", "ratios": (-0.1,)}, r"ratio -0.1 is outside \[0, 1\)"),
    ],
)
def test_what_cannot_be_recorded_is_named(options: dict[str, object], culprit: str) -> None:
    with pytest.raises(SelectorError, match=culprit):
        record(small("plain"), data(9, 3), **options)  # type: ignore[arg-type]


def test_recording_needs_three_batches() -> None:
    with pytest.raises(SelectorError, match=r"recording needs at least 3 batches.*not 2; pass"):
        record(small("plain"), data(6, 3), network="x")
