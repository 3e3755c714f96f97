"""Trees as arrays say what LightGBM says, and a text that is no model of it is refused."""

import re

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.errors import SelectorError
from selector.learning.contributions import Paths, contributions
from selector.learning.forest import Forest
from selector.learning.forest_text import ForestLimits, read_forest, slim
from selector.typing import Matrix

FEATURES, CATEGORIES = 5, 40
NAMES = (*(f"number{n}" for n in range(FEATURES - 1)), "arm")


def rows(chance: np.random.Generator, count: int) -> Matrix:
    """Numbers with gaps, zeros, tiny and infinite ones; the last is a category."""
    found = chance.normal(size=(count, FEATURES)).round(2)
    found[chance.random(found.shape) < 0.1] = np.nan
    found[chance.random(found.shape) < 0.1] = 0.0
    found[chance.random(found.shape) < 0.02] = 1e-36
    found[:, 1] = np.nan_to_num(found[:, 1])
    found[:, -1] = chance.integers(0, CATEGORIES, count)
    return found


def learnt(seed: int, leaves: int = 9, trees: int = 12, **how: object) -> lgb.Booster:
    chance = np.random.default_rng(seed)
    x = rows(chance, 600)
    y = np.nan_to_num(x[:, 0]) * 2 + np.isnan(x[:, 2]) + np.sin(7 * x[:, -1]) + x[:, 1] ** 2
    data = lgb.Dataset(
        x,
        y,
        weight=chance.uniform(0.1, 2, len(y)),
        feature_name=list(NAMES),
        categorical_feature=["arm"],
    )
    asked = {
        "num_leaves": leaves,
        "min_data_in_leaf": 2,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "min_data_per_group": 5,
        "seed": seed,
        "num_threads": 1,
        "verbosity": -1,
        **how,
    }
    return lgb.train(asked, data, trees)


def limits(leaves: int = 9, trees: int = 12, names: tuple[str, ...] = NAMES) -> ForestLimits:
    return ForestLimits(trees=trees, leaves=leaves, features=names, categories=CATEGORIES)


def asked(seed: int, count: int) -> Matrix:
    """Rows to ask for, with what no training row has."""
    chance = np.random.default_rng([seed, 1])
    found = rows(chance, count)
    found[chance.random(found.shape) < 0.02] = np.inf
    found[chance.random(found.shape) < 0.02] = -np.inf
    found[:, -1] = chance.choice([*range(CATEGORIES), np.nan, -1, -0.5, 3.7, 99, 1e6], count)
    return found


@pytest.mark.parametrize(
    ("leaves", "how"),
    [
        (2, {}),
        (9, {}),
        (9, {"zero_as_missing": True}),
        (9, {"use_missing": False}),
        (9, {"max_cat_to_onehot": 64}),
        (17, {}),
        (64, {}),
        (65, {}),
        (200, {}),
        (9, {"min_data_in_leaf": 500}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_predicts_to_the_last_bit_what_lightgbm_does(
    leaves: int, how: dict[str, object], seed: int
) -> None:
    booster = learnt(seed, leaves, **how)
    forest = read_forest(booster.model_to_string(), limits(leaves))
    for count in (1, 3, 150):
        x = asked(seed, count)
        np.testing.assert_array_equal(forest.predict(x), booster.predict(x, num_threads=1))
        x = x.astype(np.float32)  # type: ignore[assignment]
        np.testing.assert_array_equal(forest.predict(x), booster.predict(x, num_threads=1))
    kinds = set(forest.kind.ravel().tolist())
    if leaves == 9 and "min_data_in_leaf" not in how:
        assert len(kinds) > 2 or "use_missing" in how, "several kinds of splits are tried"


@pytest.mark.parametrize("leaves", [2, 9, 40])
def test_contributions_are_those_of_lightgbm(leaves: int) -> None:
    booster = learnt(3, leaves)
    forest = read_forest(booster.model_to_string(), limits(leaves))
    x = asked(3, 20)
    found = contributions(forest, Paths.of(forest), x)
    np.testing.assert_allclose(found, booster.predict(x, pred_contrib=True), atol=1e-12)
    np.testing.assert_allclose(found.sum(1), forest.predict(x), atol=1e-12)


@pytest.mark.parametrize(("leaves", "how"), [(2, {}), (40, {}), (9, {"min_data_in_leaf": 500})])
def test_without_what_nobody_reads_it_predicts_the_same(
    leaves: int, how: dict[str, object]
) -> None:
    booster = learnt(4, leaves, **how)
    whole = booster.model_to_string()
    text, x = slim(whole), asked(4, 60)
    assert len(text) < 0.85 * len(whole) or "min_data_in_leaf" in how
    expected = booster.predict(x, num_threads=1)
    np.testing.assert_array_equal(read_forest(text, limits(leaves)).predict(x), expected)
    # LightGBM itself reads it, too.
    again = lgb.Booster(model_str=text)
    np.testing.assert_array_equal(again.predict(x, num_threads=1), expected)
    assert slim(text) == text


def test_trees_of_a_single_leaf_contribute_nothing() -> None:
    forest = read_forest(learnt(0, min_data_in_leaf=500).model_to_string(), limits())
    assert forest.leaves.max() == 1
    found = contributions(forest, Paths.of(forest), asked(0, 3))
    assert not found[:, :-1].any()
    np.testing.assert_allclose(found[:, -1], forest.predict(asked(0, 3)))


@pytest.fixture(scope="module")
def text() -> str:
    return str(learnt(5).model_to_string())


def resized(text: str) -> str:
    """With the sizes that its trees now have: what somebody who changes them on purpose does."""
    head, _, rest = text.partition("\n\n")
    body, end, tail = rest.partition("end of trees")
    blocks = re.split(r"(?=^Tree=)", body, flags=re.MULTILINE)[1:]
    sizes = " ".join(str(len(block)) for block in blocks)
    return re.sub(r"tree_sizes=.*", f"tree_sizes={sizes}", head) + f"\n\n{body}{end}{tail}"


@pytest.mark.parametrize(
    ("pattern", "other", "culprit"),
    [
        (r"^tree\n", "trees\n", "does not begin as a model of LightGBM"),
        ("version=v4", "version=v9", "its version is v9, not v4"),
        ("objective=regression", "objective=binary", "its objective is binary"),
        ("max_feature_idx=4", "max_feature_idx=999999999", "its max_feature_idx is 999999999"),
        ("feature_names=number0", "feature_names=number9", "it has other features"),
        ("num_leaves=9", "num_leaves=2000000000", "its tree 0 is none: num_leaves holds 20000"),
        ("num_leaves=9", "num_leaves=8", "its tree 0 is none: split_feature holds 8 numbers"),
        (r"split_feature=\d", "split_feature=7", "split_feature holds a number that is not within"),
        (r"split_feature=\d", "split_feature=-1", "split_feature holds a number that is not"),
        (r"threshold=\S+", "threshold=nan", "threshold holds a number that is not finite"),
        (r"leaf_value=\S+", "leaf_value=inf", "leaf_value holds a number that is not finite"),
        (r"leaf_value=\S+", "leaf_value=one", "its leaf_value is no list of numbers"),
        (r"left_child=\S+", "left_child=0", "left_child holds a child out of range"),
        (r"left_child=\S+", "left_child=99", "left_child holds a number that is not within"),
        (r"left_child=\S+", "left_child=-9", "children holds one twice"),
        (r"decision_type=\d+", "decision_type=12", "decision_type holds a number"),
        (r"is_linear=0", "is_linear=1", "is_linear holds not 0"),
        (r"cat_boundaries=0 \d", "cat_boundaries=0 9", "cat_boundaries holds a set that is not"),
        (r"cat_threshold=\d+", "cat_threshold=99999999999", "cat_threshold holds no list"),
        ("Tree=3", "Tree=4", "its tree 3 begins with Tree=4"),
        ("end of trees", "end of tree", "its tree_sizes are not the sizes of its trees"),
    ],
)
def test_a_tree_that_is_none_is_named(text: str, pattern: str, other: str, culprit: str) -> None:
    changed = resized(re.sub(pattern, other, text, count=1, flags=re.MULTILINE))
    assert changed != text
    with pytest.raises(SelectorError, match=culprit):
        read_forest(changed, limits())


@pytest.mark.parametrize(("trees", "leaves"), [(11, 9), (12, 8)])
def test_no_more_trees_and_leaves_than_the_settings_say(text: str, trees: int, leaves: int) -> None:
    with pytest.raises(SelectorError, match=r"it has 12 trees|num_leaves holds 9"):
        read_forest(text, limits(leaves, trees))


def test_sizes_that_are_not_those_of_the_trees(text: str) -> None:
    with pytest.raises(SelectorError, match="tree_sizes are not the sizes"):
        read_forest(re.sub(r"tree_sizes=\d+", "tree_sizes=7", text), limits())


@settings(max_examples=80, deadline=None)
@given(
    place=st.floats(0, 1, exclude_max=True),
    piece=st.sampled_from("019-.=e\nx"),
)
def test_whatever_is_changed_it_is_refused_or_predicts(text: str, place: float, piece: str) -> None:
    at = int(place * len(text))
    changed = resized(text[:at] + piece + text[at + 1 :])
    try:
        forest = read_forest(changed, limits())
    except SelectorError:
        return
    assert isinstance(forest, Forest)
    assert np.isfinite(forest.predict(asked(5, 5))).all()
