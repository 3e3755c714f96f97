"""A plan comes back from its file as it was, and what no network could have is refused."""

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selector.errors import SelectorError
from selector.learning.explanation import Explanation
from selector.planning.choose import choose
from selector.planning.plan import Plan
from selector.pruning.apply import apply_plan
from selector.pruning.prune import prune
from tests.networks import data, small

Raw = dict[str, Any]


@cache
def plan_of(kind: str) -> Plan:
    model = small("plain", 8, norm=True).eval()
    if kind == "rounds":
        return prune(model, data(32, 16), keep_macs=0.6, rounds=2).plan
    if kind == "verified":
        return choose(model, data(32, 16), ratio=0.3, verify=2)
    if kind == "one batch":
        # One batch measures, so that its standard errors are NaN.
        return choose(model, data(16, 8), criterion="oracle", ratio=0.3, loss=spread)
    if kind == "grouped":
        return choose(small("grouped", 6).eval(), data(8, 4), criterion="l1", ratio=0.4)
    return choose(model, data(32, 16), criterion="l1", ratio=0.3)


def spread(outputs: Tensor, targets: Tensor) -> Tensor:
    """No mean over images."""
    return outputs.var(0).mean()


KINDS = ["l1", "rounds", "verified", "one batch", "grouped"]


def raw_of(kind: str = "verified") -> Raw:
    found = json.loads(plan_of(kind).to_json())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    plan = plan_of(kind)
    plan.save(tmp_path / "plan.json")
    found = Plan.load(tmp_path / "plan.json")
    # By text: a standard error may be NaN, which equals nothing.
    assert found.to_json() == plan.to_json()
    assert repr(found) == repr(plan)
    for choice in found.choices:
        if choice.explanation is not None:
            text = choice.explanation.to_json()
            assert Explanation.from_json(text) == choice.explanation


def test_a_plan_of_an_earlier_version() -> None:
    raw = raw_of("rounds")
    for name in ("cuts", "warnings", "goal", "expected", "measured", "outcome"):
        raw.pop(name, None)
    for choice in raw["choices"]:
        for name in ("predicted_interval", "against_trusted", "asked", "explanation"):
            choice.pop(name)
    assert Plan.from_json(json.dumps(raw)).removals == plan_of("rounds").removals


def edited(path: str, value: object) -> Callable[[Raw], None]:
    def edit(raw: Raw) -> None:
        place: Any = raw
        *way, last = path.split(".")
        for step in way:
            place = place[int(step) if step.isdecimal() else step]
        place[int(last) if last.isdecimal() else last] = value

    return edit


BAD: list[tuple[str, object, str]] = [
    ("choices.0.remove", ["zero"], "remove"),
    ("choices.0.remove", [1.5], "remove"),
    ("choices.0.remove", [True], "remove"),
    ("choices.0.remove", "12", "remove"),
    ("choices.0.remove", None, "remove"),
    ("choices.0.remove", [-1], "remove names channel -1"),
    ("choices.0.remove", [8], "remove names channel 8"),
    ("choices.0.remove", [10**30], "remove names channel 1000"),
    ("choices.0.remove", [1, 1], "remove names a channel .* twice"),
    ("choices.0.remove", list(range(8)), "remove names all channels"),
    ("choices.0.remove", [0], "remove of group 'stem' is not what the plan's cuts take"),
    ("choices.0.channels", "8", "channels"),
    ("choices.0.channels", 1, "remove names channel"),
    ("choices.0.metric", 3, "metric"),
    ("choices.0.predicted_nats", float("nan"), r"predicted_nats"),
    ("choices.0.predicted_interval", [1], "predicted_interval"),
    ("choices.0.explanation", {}, "explanation"),
    ("choices.0.explanation.reasons.0.weight", "much", r"reasons\[0\].weight"),
    ("choices.0.explanation.extra", 1, "unknown field 'extra'"),
    ("choices.0.extra", 1, "unknown field 'extra'"),
    ("choices.1.group", "stem", "choices name group 'stem' twice"),
    ("choices", 3, "choices"),
    ("extra", 1, "unknown field 'extra'"),
    ("macs_after", 1e30, "macs_after"),
    ("macs_after", float("inf"), "macs_after|finite"),
    ("macs_before", "many", "macs_before"),
    ("macs_before", 10**400, "macs_before|out of range|large"),
    ("parameters_after", -1, "parameters_after"),
    ("oracle_images", -1, "oracle_images"),
    ("oracle_images", 1.5, "oracle_images"),
    ("criterion", None, "criterion"),
    ("refused", ["a"], "refused"),
    ("refused", {"a": 1}, "refused"),
    ("goal", {"target": "keep_macs"}, "goal"),
    ("cuts.0.side", "up", "side"),
    ("cuts.0.indices", [0, 0], "repeat"),
    ("cuts.0.indices", [-1], "below 0"),
    ("warnings", "text", "warnings"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD)
def test_nonsense_is_refused_and_named(path: str, value: object, message: str) -> None:
    raw = raw_of()
    assert raw["choices"][0]["group"] == "stem"
    edited(path, value)(raw)
    with pytest.raises(SelectorError, match=message):
        Plan.from_json(json.dumps(raw))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "null", "{", "[" * 100_000, '{"a":' * 100_000, "9" * 100_000, "\x00", "NaN"],
)
def test_what_is_no_plan(text: str) -> None:
    with pytest.raises(SelectorError, match="this is not a plan saved by to_json"):
        Plan.from_json(text)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x80plan", b"\x00" * 9])
def test_a_file_of_something_else(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(SelectorError, match="plan"):
        Plan.load(tmp_path / "plan.json")
    for path in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(SelectorError, match="cannot be read"):
            Plan.load(path)


def test_an_edited_plan_is_replayed_as_edited() -> None:
    model = small("plain", 8, norm=True).eval()
    raw = raw_of("l1")
    first = raw["choices"][0]
    first["remove"] = [0, 1]
    with pytest.raises(SelectorError, match="take the field 'cuts' out, and give apply_plan batch"):
        Plan.from_json(json.dumps(raw))
    del raw["cuts"]
    plan = Plan.from_json(json.dumps(raw))
    small_model = apply_plan(model, plan, data())
    assert small_model.stem.out_channels == 6


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_whatever_is_written_in_place_of_a_value_is_read_or_refused(chance: st.DataObject) -> None:
    raw = copy.deepcopy(raw_of())
    place: Any = raw
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = chance.draw(st.sampled_from(keys))
        inside = place[key]
        if not isinstance(inside, dict | list) or not inside or chance.draw(st.booleans()):
            break
        place = inside
    place[key] = chance.draw(Json)
    try:
        found = Plan.from_json(json.dumps(raw))
    except SelectorError:
        return
    assert Plan.from_json(found.to_json()).to_json() == found.to_json()
    str(found)
