"""Files of records: whole or not read, whatever happens to who writes them and to their bytes."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selector.errors import SelectorError
from selector.files import partial_of
from selector.learning.selector import SaliencySelector
from selector.records import reading
from selector.records import records as records_module
from selector.records.layout import CANDIDATES_FILE, FILES, GROUPS_FILE, SCHEMA_VERSION
from selector.records.parquet import rows_of, tuples_of
from selector.records.provenance import Provenance, check_mixture
from selector.records.records import Records
from tests.made_records import METRICS, made, same

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the records of networks `a` and `b`; only to be read."""
    folder = tmp_path_factory.mktemp("records")
    made(["a", "b"]).save(folder)
    return folder


def test_rows_are_those_of_the_slow_way() -> None:
    columns = {
        "name": ["a", None, "a", "b"],
        "number": [1, 2, 3, None],
        "values": [[1.0, 2.0], None, [], [3.0]],
    }
    table = pa.concat_tables([pa.table(columns), pa.table(columns).slice(1, 2)])
    rows = rows_of(table)
    for fast, slow in zip(rows, table.to_pylist(), strict=True):
        values = fast["values"]
        assert {**fast, "values": None if values is None else list(values)} == slow  # type: ignore[call-overload]
    assert list(tuples_of(table, ["number", "absent", "name"]))[:2] == [
        (1, None, "a"),
        (2, None, None),
    ]


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_a_file_cut_short_anywhere_is_named(
    saved: Path, tmp_path: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(FILES))
    whole = (saved / "a" / name).read_bytes()
    length = data.draw(st.integers(0, len(whole) - 1))
    folder = copied(saved, tmp_path)
    (folder / "a" / name).write_bytes(whole[:length])
    with pytest.raises(SelectorError, match=f"a/{name} cannot be read as Parquet"):
        Records.load(folder)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_changed_byte_is_noticed_or_changes_nothing(
    saved: Path, tmp_path: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(FILES))
    # Not in the footer, which has no checksum of its own.
    length = int.from_bytes((saved / "a" / name).read_bytes()[-8:-4], "little")
    content = bytearray((saved / "a" / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - length - 9))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    folder = copied(saved, tmp_path)
    (folder / "a" / name).write_bytes(content)
    found = loaded(folder)
    assert str(folder / "a") in found if isinstance(found, str) else same(found, loaded(saved))  # type: ignore[arg-type]


def loaded(folder: Path) -> Records | str:
    """What is read, or what is said of it."""
    try:
        return Records.load(folder)
    except SelectorError as error:
        return str(error)


def copied(saved: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    return folder


def test_halves_of_different_recordings_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    shutil.copy(folder / "b" / GROUPS_FILE, folder / "a" / GROUPS_FILE)
    with pytest.raises(SelectorError, match="its two files come from different recordings"):
        Records.load(folder)


def renamed(records: Records, name: str) -> Records:
    return Records(
        tuple(replace(one, network=name) for one in records.networks),
        tuple(replace(one, network=name) for one in records.groups),
        tuple(replace(one, network=name) for one in records.candidates),
    )


def with_group(records: Records, **changes: Any) -> Records:
    first, *others = records.groups
    return replace(records, groups=(replace(first, **changes), *others))


def with_candidate(records: Records, **changes: Any) -> Records:
    first, *others = records.candidates
    return replace(records, candidates=(replace(first, **changes), *others))


WHOLE = made(["a"])
NO_NUMBERS = {metric: np.full(8, np.nan) for metric in METRICS}
WRONG: dict[str, tuple[Records, str]] = {
    "no group": (
        replace(WHOLE, groups=WHOLE.groups[1:]),
        "a / unpruned / layer0 / 1 / l1 is of group 'layer0' of 'unpruned', which is missing",
    ),
    "a group twice": (
        replace(WHOLE, groups=(*WHOLE.groups, WHOLE.groups[0])),
        "group a / unpruned / layer0 is there twice",
    ),
    "a candidate twice": (
        replace(WHOLE, candidates=(*WHOLE.candidates, WHOLE.candidates[2])),
        "candidate a / unpruned / layer0 / 1 / fpgm is there twice",
    ),
    "scores that are NaN": (
        with_group(WHOLE, scores=NO_NUMBERS),
        "scores of 'l1' in group a / unpruned / layer0 must be 8 finite numbers",
    ),
    "too few scores": (
        with_group(WHOLE, scores={m: v[:5] for m, v in WHOLE.groups[0].scores.items()}),
        "scores of 'l1' in group a / unpruned / layer0 must be 8 finite numbers",
    ),
    "an infinite fact": (
        with_group(WHOLE, facts=replace(WHOLE.groups[0].facts, kernel=float("inf"))),
        "kernel of group a / unpruned / layer0 is not finite",
    ),
    "a metric that was not recorded": (
        with_group(WHOLE, scores={**WHOLE.groups[0].scores, "astrology": np.ones(8)}),
        "scores of 'astrology', which the network was not recorded with",
    ),
    "an arm without scores": (
        with_candidate(WHOLE, arm="astrology"),
        "a / unpruned / layer0 / 1 / astrology is of a metric that its group has no scores of",
    ),
    "a negative error": (
        with_candidate(WHOLE, evaluation_error=-0.1),
        "evaluation_error=-0.1 of candidate a / unpruned / layer0 / 1 / l1 must not be negative",
    ),
    "all channels": (
        with_candidate(WHOLE, count=8),
        "a / unpruned / layer0 / 8 / l1 removes 8 of 8 channels",
    ),
    "a name that leads elsewhere": (
        renamed(WHOLE, "/../../x"),
        "network='/../../x' must be the name of a folder",
    ),
    "a hidden name": (renamed(WHOLE, ".x"), "network='.x' must be the name of a folder"),
    "no name": (renamed(WHOLE, ""), "network='' must be the name of a folder"),
    "a long name": (renamed(WHOLE, "x" * 300), "must be the name of a folder"),
}


@pytest.mark.parametrize("together", [1, 2, 3, 100])
def test_folders_read_together_are_those_read_one_by_one(
    together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"net{number}" for number in range(5)]
    for number, name in enumerate(names):  # The third has other columns than the rest.
        made([name], metrics=METRICS if number != 2 else METRICS[:-1]).save(tmp_path)
    alone = [Records.load(tmp_path / name) for name in names]
    monkeypatch.setattr(reading, "TOGETHER", together)
    monkeypatch.setattr(records_module, "check_mixture", lambda _: None)
    found = Records.load(tmp_path)
    assert found.networks == tuple(one.networks[0] for one in alone)
    assert found.candidates == tuple(row for one in alone for row in one.candidates)
    for group, right in zip(found.groups, (g for one in alone for g in one.groups), strict=True):
        assert (group.network, group.group, group.facts) == (
            right.network,
            right.group,
            right.facts,
        )
        assert group.scores.keys() == right.scores.keys()
        assert all((group.scores[name] == right.scores[name]).all() for name in right.scores)


@pytest.mark.parametrize("file", FILES)
def test_rows_of_another_network_are_not_read(file: str, saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    metadata = pq.read_schema(folder / "a" / file).metadata
    table = pq.read_table(folder / "b" / file).replace_schema_metadata(metadata)
    pq.write_table(table, folder / "a" / file)
    with pytest.raises(SelectorError, match=r"a holds no records of ours: .*\bb\b"):
        Records.load(folder)


@pytest.mark.parametrize("name", WRONG)
def test_rows_that_cannot_have_been_measured_are_not_written(name: str, tmp_path: Path) -> None:
    records, culprit = WRONG[name]
    with pytest.raises(SelectorError, match=re.escape(culprit)):
        (records + made(["b"])).save(tmp_path / "deep" / "records")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in WRONG if " name" not in name])
def test_rows_that_cannot_have_been_measured_are_not_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, culprit = WRONG[name]
    with monkeypatch.context() as unchecked:
        unchecked.setattr(records_module, "check_measured", lambda *_: None)
        records.save(tmp_path)
    with pytest.raises(SelectorError, match=f"a holds no records of ours: .*{re.escape(culprit)}"):
        Records.load(tmp_path)


@pytest.mark.parametrize("name", ["/../../x", "..", "a/b", ".hidden", ""])
def test_a_network_whose_name_leads_elsewhere_is_not_read(
    name: str, saved: Path, tmp_path: Path
) -> None:
    folder = copied(saved, tmp_path)
    for file in FILES:
        table = pq.read_table(folder / "a" / file)
        about = {**json.loads(table.schema.metadata[b"provenance"]), "network": name}
        metadata = {**table.schema.metadata, b"provenance": json.dumps(about).encode()}
        del metadata[b"sha256"]
        pq.write_table(table.replace_schema_metadata(metadata), folder / "a" / file)
    culprit = re.escape(
        f"a holds no records of ours: network={name!r} must be the name of a folder"
    )
    with pytest.raises(SelectorError, match=culprit):
        Records.load(folder)


def test_another_half_missing_is_named(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    (folder / "b" / CANDIDATES_FILE).unlink()
    with pytest.raises(SelectorError, match=rf"b/{CANDIDATES_FILE} cannot be read"):
        Records.load(folder)


def test_columns_of_a_later_version_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    table = pq.read_table(folder / "a" / CANDIDATES_FILE)
    more = table.append_column("latency_ms", pa.array([1.0] * table.num_rows))
    pq.write_table(more, folder / "a" / CANDIDATES_FILE)
    with pytest.raises(SelectorError, match=r"unknown columns \['latency_ms'\]"):
        Records.load(folder)


def test_schema_versions_do_not_mix(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    for name in FILES:
        table = pq.read_table(folder / "b" / name)
        about = {**table.schema.metadata, b"schema_version": b"1"}
        pq.write_table(table.replace_schema_metadata(about), folder / "b" / name)
    culprit = rf"a has records schema {SCHEMA_VERSION} and .*b has 1; they do"
    with pytest.raises(SelectorError, match=culprit):
        Records.load(folder)
    assert len(Records.load(folder / "b").networks) == 1


def test_a_network_in_two_folders_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    shutil.copytree(saved / "a", folder / "more" / "a")
    with pytest.raises(SelectorError, match=r"network 'a' is in .*copy/a and in .*more/a; remove"):
        Records.load(folder)


def test_networks_recorded_with_other_metrics_do_not_mix(tmp_path: Path) -> None:
    both = made(["a"]), made(["b"], metrics=["l1", "taylor", "mine"])
    for records in both:
        records.save(tmp_path)
    refused = r"'a' and 'b' were recorded with different metrics: .* has fpgm, mine; record one"
    with pytest.raises(SelectorError, match=refused):
        Records.load(tmp_path)
    with pytest.raises(SelectorError, match=refused):
        both[0] + both[1]
    unsaid = made(["c"], metrics=[])
    assert len((both[0] + unsaid).networks) == 2


def test_what_belongs_together_is_no_question_of_order() -> None:
    one, other = (made([name]).networks[0] for name in "ab")
    check_mixture({"x": (one, "2"), "y": (other, "2")})
    for parts in ({"x": (one, "2"), "y": (other, "1")}, {"x": (one, "1"), "y": (other, "2")}):
        with pytest.raises(SelectorError, match=r"x has records schema \d and y has \d; they do"):
            check_mixture(parts)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("moment", ["folder", "first", "second", "half", "rename"])
def test_a_full_disk_leaves_nothing(
    moment: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(saved, tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
    written: list[Path] = []
    write = pq.write_table

    def full(*_: object, **__: object) -> None:
        raise FULL

    def fills_up(table: pa.Table, path: Path, **options: object) -> None:
        if moment == ("first", "second")[len(written)]:
            raise FULL
        write(table, path, **options)
        written.append(path)
        if moment == "half":
            path.write_bytes(path.read_bytes()[:100])
            raise FULL

    monkeypatch.setattr(pq, "write_table", fills_up)
    if moment == "folder":
        monkeypatch.setattr(records_module, "forget_remains", full)
    if moment == "rename":
        monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(SelectorError, match=r"copy/c cannot be written: .*No space left on device"):
        made(["c"]).save(folder)
    monkeypatch.undo()
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
    assert {path: path.read_bytes() for path in folder.rglob("*.parquet")} == before
    made(["c"]).save(folder)
    assert len(Records.load(folder).networks) == 3


SAVES = """
import sys
from tests.made_records import made
records = {name: made([name], groups=40) for name in "abcdefghij"}
print("ready", flush=True)
for name, found in records.items():
    found.save(sys.argv[1])
"""


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))]
)
def test_whoever_is_killed_while_writing_leaves_whole_networks_only(
    seed: int, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SAVES, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while not list(tmp_path.glob("[a-z]")):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
    read = Records.load(tmp_path)
    assert [p.network for p in read.networks] == sorted(p.name for p in tmp_path.glob("[a-z]"))
    for p in read.networks:
        assert same(read.of_networks([p.network]), made([p.network], groups=40))


def test_what_a_killed_run_left_is_not_read_and_goes_when_the_network_is_written(
    saved: Path, tmp_path: Path
) -> None:
    folder = copied(saved, tmp_path)
    left = [
        partial_of(folder / name).name.replace(f"-{os.getpid()}-", "-999999999-")
        for name in ("c", "c.d")
    ]
    alive = partial_of(folder / "c").name
    for name in (*left, alive):
        shutil.copytree(saved / "a", folder / name)
    assert same(Records.load(folder), Records.load(saved))
    made(["c"]).save(folder)
    assert {path.name for path in folder.iterdir()} == {alive, left[1], "a", "b", "c"}


def test_origins_are_kept_apart(tmp_path: Path) -> None:
    everything = made(["a", "b"]) + made(["f"], origin="foreign")
    everything.save(tmp_path)
    read = Records.load(tmp_path)
    assert same(read.own(), made(["a", "b"]))
    assert same(read.of_origin("foreign"), made(["f"], origin="foreign"))
    with pytest.raises(
        SelectorError, match="unknown origin 'strange'; known: own, third_party, foreign"
    ):
        read.of_origin("strange")
    with pytest.raises(
        SelectorError, match="a: unknown origin 'strange'; known: own, third_party, foreign"
    ):
        Provenance("a", "", "", "strange", 1, "{}")


def test_no_selector_learns_from_foreign_networks() -> None:
    own, foreign = made(["a", "b", "c"]), made(["f", "g"], origin="foreign", seed=9)
    with pytest.warns(UserWarning, match="left out of the fit: f, g, of foreign origin"):
        learnt = SaliencySelector(trees=5).fit(own + foreign)
    assert learnt.networks_ == ["a", "b", "c"]
    alone = SaliencySelector(trees=5).fit(own)
    for _, decision, _ in foreign.decisions():
        assert vars(learnt.predict(decision)) == vars(alone.predict(decision))
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(SelectorError, match="records of 0 network"),
    ):
        SaliencySelector().fit(foreign)


def test_provenance_that_is_none_is_named(saved: Path, tmp_path: Path) -> None:
    for about in ("[]", "{}", '{"network": 1}', "no JSON", json.dumps({"versions": "[]"})):
        folder = copied(saved, tmp_path)
        for name in FILES:
            table = pq.read_table(folder / "a" / name)
            metadata = {**table.schema.metadata, b"provenance": about.encode()}
            del metadata[b"sha256"]
            pq.write_table(table.replace_schema_metadata(metadata), folder / "a" / name)
        with pytest.raises(SelectorError, match="a holds no records of ours"):
            Records.load(folder)
