"""Does retraining help? Nothing leaks, the figures are those of loops, the words follow them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.errors import SelectorError
from selector.learning.compare import compare
from selector.learning.comparison import ALONE, SHIPPED, TOGETHER, Comparison, MethodRow
from selector.learning.evaluation import SBS_NATS, SBS_REGRET, VBS, Judged, Outcome
from selector.learning.selector import SaliencySelector
from selector.learning.table import TrainingTable
from selector.records.records import Records
from tests.made_records import lawful, made

QUICK = SaliencySelector(trees=60, learning_rate=0.15, folds=2, caution=0.1)


def contrary(names: Sequence[str], seed: int) -> Records:
    """As `lawful`, with the two kinds of layers exchanged."""
    records = lawful(names, seed)
    groups = [
        replace(g, facts=replace(g.facts, kernel=4.0 - g.facts.kernel)) for g in records.groups
    ]
    return replace(records, groups=tuple(groups))


@pytest.fixture(scope="module")
def shipped() -> SaliencySelector:
    learnt = SaliencySelector(**QUICK.get_params())
    return learnt.fit(lawful([f"theirs{i}" for i in range(6)], 0))


@pytest.fixture(scope="module")
def other_world(shipped: SaliencySelector) -> Comparison:
    own = contrary([f"own{i}" for i in range(5)], 1)
    base = lawful([f"base{i}" for i in range(3)], 2)
    return compare(own, base=base, weight=4.0, given=shipped, settings=QUICK)


def row(found: Comparison, method: str) -> MethodRow:
    return next(one for one in found.rows if one.method == method)


def test_where_the_world_is_another_retraining_helps(other_world: Comparison) -> None:
    assert other_world.helped is True
    # Weighed four times, one's own networks say the same with the misleading ones beside them.
    retrained = {name: row(other_world, name).regret for name in (ALONE, TOGETHER)}
    assert other_world.best_retrained == min(retrained, key=retrained.__getitem__)
    assert "retraining helped: use the selector retrained on " in other_world.advice
    assert max(retrained.values()) < row(other_world, SHIPPED).regret
    assert other_world.advice in str(other_world)


def test_where_the_given_selector_is_right_retraining_on_chance_does_not_help(
    shipped: SaliencySelector,
) -> None:
    own = lawful([f"own{i}" for i in range(4)], 3)
    misleading = contrary([f"base{i}" for i in range(4)], 4)
    found = compare(own, base=misleading, weight=0.01, given=shipped, settings=QUICK)
    assert row(found, SHIPPED).regret < row(found, TOGETHER).regret
    assert row(found, SHIPPED).regret < row(found, SBS_REGRET).regret
    assert found.helped is not True
    assert "keep the given selector" in found.advice


def test_the_figures_by_loops(other_world: Comparison) -> None:
    records = contrary([f"own{i}" for i in range(5)], 1)
    costs: dict[str, list[dict[str, float]]] = {}
    for group, _, rows in records.decisions():
        costs.setdefault(group.network, []).append({one.arm: one.nats for one in rows})
    fixed, oracle, regrets = [], [], []
    for network, decisions in costs.items():
        others = [one for name, found in costs.items() if name != network for one in found]
        best = min(others[0], key=lambda arm: sum(one[arm] for one in others))
        for one in decisions:
            fixed.append(one[best])
            oracle.append(min(one.values()))
            ordered = sorted(one.values())
            regrets.append((one[best] - ordered[0]) / (ordered[1] - ordered[0] + 0.002))
    assert row(other_world, SBS_NATS).nats == pytest.approx(np.mean(fixed))
    assert row(other_world, SBS_NATS).regret == pytest.approx(np.mean(regrets))
    assert row(other_world, VBS).nats == pytest.approx(np.mean(oracle))
    for method in other_world.rows:
        gap = (np.mean(fixed) - method.nats) / (np.mean(fixed) - np.mean(oracle))
        assert method.gap_closed_nats == pytest.approx(gap)
    assert (row(other_world, VBS).gap_closed, row(other_world, SBS_NATS).gap_closed) == (1, 0)
    assert other_world.decisions == len(fixed) == 5 * 12 * 3


def test_nothing_is_learnt_of_a_network_that_is_left_out(
    shipped: SaliencySelector, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[tuple[set[str], dict[str, float]]] = []
    fit_table = SaliencySelector.fit_table

    def spied(self: SaliencySelector, table: TrainingTable) -> SaliencySelector:
        names = set(table.network.tolist())
        learnt.append((names, {n: float(table.weight[table.network == n].sum()) for n in names}))
        return fit_table(self, table)

    monkeypatch.setattr(SaliencySelector, "fit_table", spied)
    own, base = made(["a", "b", "c"], groups=2), made(["x", "y", "b"], groups=2)
    given = SaliencySelector(trees=2).fit(made(["p", "q"], groups=2))
    learnt.clear()
    quick = SaliencySelector(trees=2)
    found = compare(own, base=base, weight=3.0, given=given, settings=quick)
    assert [names for names, _ in learnt] == [
        *({"b", "c"}, {"b", "c", "x", "y"}),
        *({"a", "c"}, {"a", "c", "x", "y"}),
        *({"a", "b"}, {"a", "b", "x", "y"}),
    ]
    for _, weights in learnt:
        for name, weight in weights.items():
            assert weight == pytest.approx(1.0 if name in "xy" else 3.0)
    assert "left out of base, being your own networks: b" in str(found)


def test_networks_that_the_given_selector_knows_are_named() -> None:
    given = SaliencySelector(trees=2).fit(made(["a", "z"], groups=2))
    own = made(["a", "b", "c"], groups=2)
    found = compare(own, given=given, settings=SaliencySelector(trees=2))
    assert found.known == ("a",)
    assert "* no fair test: the given selector has learnt from a" in str(found)
    assert f"{SHIPPED} *" in str(found)
    assert found.helped is None
    assert "2 networks that the given selector has not learnt from are too few" in found.advice
    assert json.loads(found.to_json())["advice"] == found.advice


def test_two_networks_learn_with_others_only() -> None:
    given = SaliencySelector(trees=2).fit(made(["y", "z"], groups=2))
    foreign = made(["f"], groups=2, origin="foreign")
    own, base = made(["a", "b"], groups=2), made(["x", "w"], groups=2)
    quick = SaliencySelector(trees=2)
    found = compare(own + foreign, base=base, given=given, settings=quick)
    assert [one.method for one in found.rows] == [SBS_NATS, SBS_REGRET, SHIPPED, TOGETHER, VBS]
    assert f"{ALONE}: not evaluated" in str(found)
    assert "left out, of foreign origin: f" in str(found)


@pytest.mark.parametrize(
    ("call", "culprit"),
    [
        (lambda: compare(made(["a"])), "1 network of your own cannot say.*record 3 at least"),
        (
            lambda: compare(made(["a", "b"])),
            "2 networks of your own.*3 at least, or two together with",
        ),
        (lambda: compare(made(["a"]), base=made(["x", "y"])), "1 network of.*record 2 at least"),
        (lambda: compare(made(["a", "b"]), base=made(["a", "b"])), "record 3 at least, or two"),
        (lambda: compare(made("abc"), weight=2.0), "weight=2.0 weighs your networks.*give base"),
        (lambda: compare(made("abc"), base=made("xy"), weight=0.0), "weight 0.0 of 'a' must be"),
        (
            lambda: compare(made("abc"), base=made("xy", metrics=["l1", "taylor"])),
            "recorded with different metrics: only one of them has fpgm",
        ),
        (
            lambda: compare(
                made("abc", metrics=["l1", "fpgm"]),
                given=SaliencySelector(trees=2).fit(made("xy", metrics=["l2", "taylor"])),
                settings=SaliencySelector(trees=2),
            ),
            "the scores lack",
        ),
    ],
)
def test_what_cannot_be_compared(call: Callable[[], object], culprit: str) -> None:
    with pytest.raises(SelectorError, match=culprit):
        call()


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    count=st.integers(1, 6),
    known=st.integers(0, 6),
    methods=st.sets(st.sampled_from([ALONE, TOGETHER])),
)
def test_the_words_follow_the_figures(
    data: st.DataObject, count: int, known: int, methods: set[str]
) -> None:
    names = [f"n{i}" for i in range(count)]
    numbers = st.lists(st.floats(0, 5), min_size=count, max_size=count)
    methods |= {SBS_NATS, SHIPPED, VBS}
    regrets = {m: np.array(data.draw(numbers)) for m in sorted(methods)}
    judged = Judged(
        {m: Outcome(m, 0, found, found) for m, found in regrets.items()},
        *(np.array(names), np.array(names), np.array(names)),
        *(np.full(count, 0.5), np.empty((0, 4))),
    )
    found = Comparison.of(judged, names[:known], ["a note"])
    fair = range(min(known, count), count)
    retrained = [m for m in (ALONE, TOGETHER) if m in regrets]
    if not retrained or len(fair) < 3:
        assert found.helped is None
        assert "record more networks" in found.advice
        return
    best = min(retrained, key=lambda m: float(regrets[m].mean()))
    gains = [float(regrets[SHIPPED][i] - regrets[best][i]) for i in fair]
    mean = sum(gains) / len(gains)
    error = (sum((x - mean) ** 2 for x in gains) / (len(gains) - 1) / len(gains)) ** 0.5
    assert found.best_retrained == best
    assert found.difference == pytest.approx(mean)
    assert found.difference_error == pytest.approx(error, abs=1e-12)
    if abs(mean) > 2 * error * 1.001 + 1e-9:
        assert found.helped is (mean > 0)
        assert found.advice.startswith("retraining helped" if mean > 0 else "retraining did not")
    elif abs(mean) < 2 * error * 0.999:
        assert found.helped is None
        assert "no difference beyond twice its error" in found.advice
    assert json.loads(found.to_json())["helped"] is found.helped
    assert "a note" in str(found)
