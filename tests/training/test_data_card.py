"""The data card counts what is there and describes every column; it needs no weights to do so."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from selector.errors import SelectorError
from selector.recording.record import record
from selector.records.layout import FILES, GROUPS_FILE
from selector.records.measurement import CandidateRecord
from selector.records.records import Records
from tests.made_records import made
from tests.networks import data, small
from training.audit.columns import COLUMNS, described
from training.audit.data_card import BEGIN, TRAININGS, write_card

ROOT = Path(__file__).resolve().parents[2]


def columns_of(folder: Path) -> set[tuple[str, str]]:
    return {
        (name, column)
        for name in FILES
        for path in folder.rglob(name)
        for column in pq.read_schema(path).names
    }


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records as they are measured today."""
    folder = tmp_path_factory.mktemp("recorded")
    record(
        small("two_consumers", 5, norm=True), data(9, 3), network="one", contexts=0, ratios=(0.0,)
    ).save(folder)
    return folder


def test_every_column_in_the_files_is_described_once(recorded: Path) -> None:
    found = columns_of(ROOT / "data") | columns_of(recorded)
    assert len(found) > 60
    for file, name in found:
        covering = [column for column in COLUMNS[file] if column.covers(name)]
        assert len(covering) == 1, (file, name)
        assert covering[0].unit
        assert covering[0].what


def test_no_column_is_described_that_is_not_there(recorded: Path) -> None:
    found = columns_of(recorded)
    for file, columns in COLUMNS.items():
        for column in columns:
            assert any(column.covers(name) for where, name in found if where == file), column
    candidates = {c.name for c in COLUMNS["candidates.parquet"]}
    assert candidates == {f.name for f in fields(CandidateRecord)}


def test_a_column_is_known_by_its_whole_name() -> None:
    assert described(GROUPS_FILE, "score_weight.taylor@producers") is not None
    assert described(GROUPS_FILE, "pairs_plain_first") is not None
    for name in ("score_", "pairs_other_first", "my_fact_kernel", "fact_kernel_size"):
        assert described(GROUPS_FILE, name) is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three own networks and a foreign one, and a card with room for the counted part."""
    records = made(["a", "b"], family="x") + made(
        ["c"], family="y", contexts=["unpruned", "l1-0.7"]
    )
    (records + made(["cy_resnet20_cifar10"], origin="foreign", family="z")).save(tmp_path / "data")
    (tmp_path / "data" / "README.md").write_text(f"# Card\n\nBy hand.\n\n{BEGIN}\n\noutworn\n")
    weights = tmp_path / "weights"
    weights.mkdir()
    about = {"name": "a", "test_accuracy": 0.625, "train_loss_nats": 1.25, "fingerprint": "f1"}
    (weights / "a.json").write_text(json.dumps(about))
    return tmp_path


def audit(folder: Path) -> Path:
    path = folder / "audit.json"
    rows = [
        {"decisions of": "all", "SBS": 0.5},
        {"arm": "l1", "wins": 0.25},
        {"near-copies": "a ~ b"},
    ]
    content = {"summary": {"networks": 3.0, "decisions": 9.0}, "rows": rows}
    path.write_text(json.dumps({**content, "date": "2026-01-01", "command": "python -m x"}))
    return path


def test_the_card_counts_and_keeps_what_was_written_by_hand(folder: Path) -> None:
    text = write_card(folder / "data", folder / "weights", audit(folder)).read_text()
    assert text.startswith(f"# Card\n\nBy hand.\n\n{BEGIN}\n\n## Counts")
    assert "outworn" not in text
    records = Records.load(folder / "data").own()
    decisions = len(list(records.decisions()))
    cells = ["own", 3, 2, 1, 12, 4, decisions, len(records.candidates), 0]
    assert f"| {' | '.join(map(str, cells))} |" in text
    assert "| `a` | x | none | own | 62.5% | 1.250 |" in text
    assert "| `b` | x | none | own | not kept |" in text
    # As its authors' file reaches, see tests/test_foreign.py.
    assert "| `cy_resnet20_cifar10` | z | none | foreign | 92.6% |" in text
    assert "| `l1` | 25.0% |" in text
    assert "a ~ b" in text
    for columns in COLUMNS.values():
        assert all(f"| `{column.name}` | {column.unit} |" in text for column in columns)


def test_the_card_is_the_same_without_the_weights(folder: Path) -> None:
    first = write_card(folder / "data", folder / "weights", audit(folder)).read_text()
    kept = (folder / "data" / TRAININGS).read_text()
    shutil.rmtree(folder / "weights")
    assert write_card(folder / "data", None, audit(folder)).read_text() == first
    assert (folder / "data" / TRAININGS).read_text() == kept


def test_faults_are_named(folder: Path) -> None:
    with pytest.raises(SelectorError, match=r"absent\.json is no audit of records"):
        write_card(folder / "data", None, folder / "absent.json")
    (folder / "data" / TRAININGS).write_text("[")
    with pytest.raises(SelectorError, match=r"the trainings of .* cannot be read"):
        write_card(folder / "data", None, audit(folder))
    (folder / "data" / "README.md").write_text("no room")
    with pytest.raises(SelectorError, match="must hold this line once: <!-- From here on"):
        write_card(folder / "data", None, audit(folder))


def test_the_card_in_data_is_up_to_date(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "data", tmp_path / "data")
    assert write_card(tmp_path / "data").read_text() == (ROOT / "data" / "README.md").read_text()
