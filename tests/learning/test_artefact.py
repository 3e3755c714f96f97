"""Records that teach nothing, artefacts that are none, settings out of range: each says so."""

import copy
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from selector.errors import SelectorError
from selector.learning.artefact import write_artefact
from selector.learning.selector import SaliencySelector
from selector.records.measurement import CandidateRecord
from selector.records.records import Records
from tests.made_records import METRICS, made

QUICK = SaliencySelector(trees=3, leaves=4, folds=2)


def with_losses(records: Records, loss: Callable[[CandidateRecord], float]) -> Records:
    rows = [
        replace(row, selection_nats=loss(row), evaluation_nats=loss(row))
        for row in records.candidates
    ]
    return replace(records, candidates=tuple(rows))


def quick() -> SaliencySelector:
    return SaliencySelector(**QUICK.get_params())


@pytest.mark.parametrize(
    ("records", "culprit"),
    [
        (made([]), "records of 0 network"),
        (made(["a"]), "records of 1 network cannot.*record at least two"),
        (
            made(["a", "b"], metrics=["l1", "taylor", "astrology"]),
            "the records hold metric 'astrology', which is not in the table; register it",
        ),
        (made(["a", "b"], metrics=["l1"]), "1 known arm; record at least two metrics"),
        (
            with_losses(made(["a", "b"]), lambda row: 0.25),
            "every candidate of these records has the same loss change.*check the network's",
        ),
        (
            with_losses(made(["a", "b"]), lambda row: 0.1 * row.count),
            "in no decision of these records do two metrics' choices differ.*record larger",
        ),
        (
            with_losses(made(["a", "b"]), lambda row: float("nan") if row.network == "b" else 1.0),
            "loss changes of b are not finite; check the loss",
        ),
        (
            with_losses(made(["a", "b"]), lambda row: float("inf") * row.nats),
            "loss changes of a, b are not finite",
        ),
    ],
)
def test_records_that_teach_nothing(records: Records, culprit: str) -> None:
    with pytest.raises(SelectorError, match=culprit):
        quick().fit(records)


def test_the_least_that_teaches_something() -> None:
    records = made(["a", "b"], groups=1, metrics=["l1", "taylor"])
    learnt = quick().fit(records)
    for _, decision, _ in records.decisions():
        assert learnt.predict(decision).trusted in ("l1", "taylor")


@pytest.mark.parametrize(
    ("weights", "culprit"),
    [
        ({"c": 2.0}, "weights name 'c'; networks: a, b"),
        ({"a": -1.0}, "the weight -1.0 of 'a' must be a finite number above 0"),
        ({"b": float("nan")}, "the weight nan of 'b'"),
    ],
)
def test_weights_that_are_none(weights: Mapping[str, float], culprit: str) -> None:
    with pytest.raises(SelectorError, match=culprit):
        quick().fit(made(["a", "b"]), weights)


@pytest.mark.parametrize(
    ("setting", "value", "culprit"),
    [
        ("folds", 1, "folds=1 must be a whole number, 2 or more"),
        ("trees", 0, "trees=0 must be a whole number, 1 or more"),
        ("trees", 2.5, "trees=2.5 must be a whole number"),
        ("leaves", 1, "leaves=1 must be a whole number, 2 or more"),
        ("learning_rate", 0, "learning_rate=0 must be a finite number"),
        ("caution", -1.0, "caution=-1.0 must be a finite number, 0 or more"),
        ("seed", -1, "seed=-1 must be a whole number, 0 or more"),
        ("seed", "random", "seed='random' must be a whole number"),
        ("caution", float("nan"), "caution=nan must be a finite number"),
    ],
)
def test_settings_out_of_range(setting: str, value: object, culprit: str) -> None:
    with pytest.raises(SelectorError, match=culprit):
        quick().set_params(**{setting: value}).fit(made(["a", "b"]))


def test_it_keeps_the_conventions_of_scikit_learn() -> None:
    selector = quick()
    asked = selector.get_params()
    assert asked["trees"] == 3
    with pytest.raises(NotFittedError):
        check_is_fitted(selector)
    records = made(["a", "b"])
    assert selector.fit(records) is selector
    check_is_fitted(selector)
    assert selector.get_params() == asked
    fresh = clone(selector)
    assert fresh.get_params() == asked
    with pytest.raises(NotFittedError):
        check_is_fitted(fresh)
    assert fresh.set_params(trees=2, caution=0.5) is fresh
    assert (fresh.trees, fresh.caution) == (2, 0.5)
    with pytest.raises(ValueError, match="Invalid parameter 'forests'"):
        fresh.set_params(forests=2)
    again = clone(selector).fit(records)
    for _, decision, _ in records.decisions():
        assert again.predict(decision).cost == selector.predict(decision).cost
    copied = copy.deepcopy(selector)
    _, decision, _ = next(records.decisions())
    assert copied.predict(decision).cost == selector.predict(decision).cost


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selectors") / "whole"
    quick().fit(made(["a", "b", "c"])).save(folder)
    return folder


FILES = ("selector.json", "damage.txt", "regret_0.txt", "regret_1.txt")


def test_these_are_all_its_files(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == set(FILES)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), how=st.data())
def test_no_file_can_be_changed_or_cut_unnoticed(
    saved: Path, tmp_path: Path, name: str, place: float, how: st.DataObject
) -> None:
    whole = (saved / name).read_bytes()
    at = int(place * len(whole))
    if how.draw(st.booleans()):
        changed = whole[:at]
    else:
        other = how.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
        changed = whole[:at] + bytes([other]) + whole[at + 1 :]
    folder = tmp_path / "torn"
    folder.mkdir(exist_ok=True)
    for file in FILES:
        (folder / file).write_bytes(changed if file == name else (saved / file).read_bytes())
    same = name == "selector.json" and read(changed) == read(whole)
    if same:
        # Blanks between the description's values say nothing, and those alone may change.
        SaliencySelector.load(folder)
        return
    with pytest.raises(SelectorError, match="fit the selector again") as caught:
        SaliencySelector.load(folder)
    assert str(folder) in str(caught.value)


def read(text: bytes) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def rewritten(saved: Path, folder: Path, **changes: object) -> Path:
    """A whole artefact with checksums that fit, written by a version that means something else."""
    body = json.loads((saved / "selector.json").read_text())
    texts = {path.stem: path.read_text() for path in sorted(saved.glob("*.txt"))}
    texts |= {k: str(v) for k, v in changes.items() if k in texts}
    body |= {k: v for k, v in changes.items() if k not in texts}
    body.pop("sha256")
    write_artefact(folder, body, texts)
    return folder


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"metrics": [*METRICS, "astrology"]}, "needs metric 'astrology', which is not in the"),
        (
            {"arms": [*METRICS[:2], "astrology"], "single_best": METRICS[0]},
            "trusts proposal 'astrology', which is not in the",
        ),
        ({"single_best": "l2"}, "'l2' is not among its arms; fit the selector again"),
        ({"features": ["a", "b"]}, "learnt from other features.*; fit the selector again"),
        ({"parameters": {"forests": 3}}, "missing required field `folds` - at .*; fit the selec"),
        ({"intervals": {}}, "not saved by this version's save: .*`edges`.*; fit the selector"),
        ({"familiar": {"mean": []}}, "not saved by this version's save.*fit the selector again"),
        ({"networks": ["a", 3]}, "Expected `str`, got `int` - at `..networks.1.`"),
        ({"networks": ["a", "a"]}, "networks must be different names"),
        ({"damage_weight": float("nan")}, "nan is not a finite number - at ..damage_weight"),
        ({"damage_weight": float("inf")}, "inf is not a finite number - at ..damage_weight"),
        ({"damage_weight": "1"}, "Expected `float`, got `str` - at `..damage_weight`"),
        ({"damage_weight": -1.0}, "damage_weight=-1.0 must not be negative"),
        ({"intervals": {"edges": [1.0, 0.0], "quantiles": []}}, "intervals need ascending edges"),
        (
            {"intervals": {"edges": [], "quantiles": [[1.0, 0.0]]}},
            "lower quantiles that are not above the upper ones",
        ),
        (
            {"familiar": {"mean": [0.0], "spread": [1.0], "centres": [[0.0]], "radius": 1.0}},
            "familiar must describe decisions by",
        ),
        (
            {"familiar": {"mean": [0.0], "spread": [0.0], "centres": [[0.0]], "radius": 1.0}},
            "familiar needs a radius and spreads above 0",
        ),
        (
            {"familiar": {"mean": [0.0], "spread": [], "centres": [[0.0]], "radius": 1.0}},
            "as many numbers in its mean, its spread and each centre",
        ),
        ({"horoscope": 1}, "unknown field 'horoscope'"),
        ({"damage": "no trees"}, "not saved by this version's save.*fit the selector again"),
    ],
)
def test_an_artefact_of_another_mind_is_refused(
    saved: Path,
    tmp_path: Path,
    changes: dict[str, object],
    culprit: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SelectorError, match=culprit):
        SaliencySelector.load(rewritten(saved, tmp_path / "other", **changes))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "notes.txt", "regret_x.txt"])
def test_only_files_of_its_own_list_are_read(saved: Path, tmp_path: Path, name: str) -> None:
    folder = rewritten(saved, tmp_path / "other")
    body = json.loads((folder / "selector.json").read_text())
    body["sha256"][name] = body["sha256"]["damage.txt"]
    (folder / "selector.json").write_text(json.dumps(body))
    (folder / "notes.txt").write_text((folder / "damage.txt").read_text())
    with pytest.raises(SelectorError, match=f"lists '{re.escape(name)}', which is none of its"):
        SaliencySelector.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_only_regular_files_are_read(saved: Path, tmp_path: Path, name: str) -> None:
    folder = rewritten(saved, tmp_path / "other")
    elsewhere = tmp_path / name
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(SelectorError, match=f"{name} is not a regular file; copy the file itself"):
        SaliencySelector.load(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(SelectorError, match=f"{name} is not a regular file"):
        SaliencySelector.load(folder)


def test_features_in_another_order_are_refused(saved: Path, tmp_path: Path) -> None:
    names = json.loads((saved / "selector.json").read_text())["features"]
    folder = rewritten(saved, tmp_path / "other", features=names[::-1])
    with pytest.raises(SelectorError, match=r"learnt from other features.*fit the selector again"):
        SaliencySelector.load(folder)


def test_an_artefact_that_is_rewritten_unchanged_loads(saved: Path, tmp_path: Path) -> None:
    same = SaliencySelector.load(rewritten(saved, tmp_path / "same"))
    assert same.get_params() == SaliencySelector.load(saved).get_params()


def test_a_selector_replaces_another_and_leaves_none_of_it(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "replaced"
    records = made(["a", "b", "c"])
    first, second = quick().fit(records), quick().set_params(seed=1, folds=3).fit(records)
    for learnt in (first, second, first, first):
        learnt.save(folder)
        assert SaliencySelector.load(folder).digest == learnt.digest
        boosters = len(learnt.boosters)
        assert len(list(folder.iterdir())) == boosters + 1
    assert first.digest != second.digest


@pytest.mark.parametrize("name", FILES)
def test_what_is_too_large_is_not_read(saved: Path, tmp_path: Path, name: str) -> None:
    folder = rewritten(saved, tmp_path / "other")
    with open(folder / name, "wb") as file:
        file.truncate(2**40)  # A hole: no disk is taken.
    with pytest.raises(SelectorError, match=f"{name} has {2**40} bytes"):
        SaliencySelector.load(folder)


def test_settings_beyond_all_memory(saved: Path, tmp_path: Path) -> None:
    parameters = json.loads((saved / "selector.json").read_text())["parameters"]
    for trees, leaves in ((10**9, 15), (1, 10**6), (10**5, 1000)):
        huge = {**parameters, "trees": trees, "leaves": leaves}
        folder = rewritten(saved, tmp_path / f"{trees}", parameters=huge)
        with pytest.raises(SelectorError, match="are too large"):
            SaliencySelector.load(folder)
