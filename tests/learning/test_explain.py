"""Explanations add up to the predictions that they explain, and travel with the plan."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import lightgbm as lgb
import numpy as np
import pytest

from selector.cli.demo import calibration, network
from selector.errors import SelectorError
from selector.learning.explain import explain, explain_many
from selector.learning.explanation import Explanation
from selector.learning.feature_words import OTHERS, THE_LAYER, in_words, kind_of
from selector.learning.features import feature_names
from selector.learning.selector import SaliencySelector
from selector.planning.choose import choose
from selector.planning.plan import Plan
from selector.pruning.prune import prune
from selector.records.decision import Decision
from selector.saliency.registry import METRICS
from selector.typing import Matrix
from tests.made_records import METRICS as ARMS
from tests.made_records import lawful
from tests.networks import data, small


@pytest.fixture(scope="module")
def fitted() -> SaliencySelector:
    records = lawful([f"network{i}" for i in range(8)], 0)
    learnt = SaliencySelector(trees=80, caution=0.25).fit(records)
    learnt.damage_weight_ = 0.25  # Whatever was chosen: so that both parts are explained.
    return learnt


def unseen(seed: int = 41) -> Iterator[Decision]:
    for _, decision, _ in lawful(["unseen"], seed).decisions():
        yield decision


def test_the_reasons_sum_to_the_difference_in_predicted_cost(fitted: SaliencySelector) -> None:
    explained = 0
    for decision in unseen():
        prediction, why = fitted.predict(decision), explain(fitted, decision)
        assert why.rival is not None
        gap = prediction.cost[why.rival] - prediction.cost[why.trusted]
        assert sum(reason.weight for reason in why.reasons) == pytest.approx(gap, abs=1e-6)
        if why.rival == fitted.single_best_:
            assert gap == pytest.approx(why.gain)
            explained += 1
        sizes = [abs(reason.weight) for reason in why.reasons]
        assert sizes == sorted(sizes, reverse=True)
    assert explained > 5


def test_reasons_and_regret_by_their_slow_twin(fitted: SaliencySelector) -> None:
    decision = next(unseen())
    why = explain(fitted, decision)
    seen = fitted.described([decision])
    arms = list(seen.proposals[0])
    expected: dict[str, float] = {}
    shares = dict.fromkeys(fitted._regret, 1 / len(fitted._regret))
    for booster, part in {**shares, fitted._damage: fitted.damage_weight_}.items():
        lightgbm = lgb.Booster(model_str=booster.text)
        rows = np.asarray(lightgbm.predict(seen.features, pred_contrib=True))
        own, rival = rows[arms.index(why.trusted)], rows[arms.index(str(why.rival))]
        for number, name in enumerate(fitted.feature_names):
            share = part * (rival[number] - own[number])
            expected[kind_of(name)] = expected.get(kind_of(name), 0.0) + share
    predicted = [b.predict(seen.features)[arms.index(why.trusted)] for b in fitted._regret]
    found = {reason.kind: reason.weight for reason in why.reasons}
    assert found == pytest.approx({k: v for k, v in expected.items() if v})
    assert why.expected_regret == pytest.approx(max(0.0, float(np.mean(predicted))), abs=1e-6)


def test_what_decides_in_a_layer_is_named_first(fitted: SaliencySelector) -> None:
    """In these records the kernel alone says which metric is right, `taylor` where it is 1."""
    assert fitted.single_best_ == "l1"
    named = total = 0
    for decision in unseen():
        why = explain(fitted, decision)
        if why.trusted != fitted.single_best_:
            layer = next(reason for reason in why.reasons if reason.kind == THE_LAYER)
            named += layer.weight > 0 and layer.values[0] == "kernel 1"
            total += 1
    assert total > 5
    assert named / total > 0.8


def test_the_rival_may_be_named(fitted: SaliencySelector) -> None:
    decision = next(unseen())
    why = explain(fitted, decision, against="fpgm")
    assert why.rival == "fpgm"
    assert f"reasons for {why.trusted} over fpgm:" in str(why)
    with pytest.raises(SelectorError, match="'astrology' proposes nothing here; known: l1, fpgm"):
        explain(fitted, decision, against="astrology")


def test_many_are_explained_as_each_by_itself(fitted: SaliencySelector) -> None:
    decisions = [*unseen()][:5]
    together = explain_many(fitted, decisions)
    assert together == [explain(fitted, decision) for decision in decisions]
    assert explain_many(fitted, []) == []


def test_it_prints_and_travels(fitted: SaliencySelector) -> None:
    for decision in unseen():
        why = explain(fitted, decision)
        assert Explanation.of_dict(json.loads(why.to_json())) == why
        text = str(why)
        for part in (why.trusted, f"{why.count} of 16 channels go", "nats, 90 % interval: "):
            assert part in text
        for reason in why.reasons:
            told = f"{reason.weight:+.3f}  {reason.kind}" in text
            assert told == (abs(reason.weight) >= 0.0005)


def test_a_decision_outside_says_what_is_unusual(fitted: SaliencySelector) -> None:
    decision = next(d for d in unseen() if explain(fitted, d).trusted != fitted.single_best_)
    inside = explain(fitted, decision)
    assert "within the training distribution" in str(inside)
    unlike = replace(decision.facts, log_fan_in=40.0)
    far = Decision(replace(decision.view, facts=unlike), decision.count)
    why = explain(fitted, far)
    assert why.fell_back
    assert why.novelty > 1 > inside.novelty
    assert why.unusual[0].name == "fan in"
    assert why.unusual[0].value == str(2**40)
    assert "OUTSIDE the training distribution" in str(why)
    if why.credible:
        assert "but the decision lies outside the training distribution" in str(why)


def test_without_a_credible_gain_it_says_so() -> None:
    records = lawful([f"network{i}" for i in range(8)], 0)
    wary = SaliencySelector(trees=20, caution=1e6).fit(records)
    found = [explain(wary, decision) for decision in unseen()]
    fallen = [why for why in found if why.fell_back]
    assert fallen
    for why in fallen:
        assert not why.credible
        assert why.trusted == wary.single_best_ != why.predicted_best
        assert f"fell back to the single best: {why.predicted_best} looked better" in str(why)
        assert "is not credible" in str(why)
        assert why.expected_regret >= 0


def test_metrics_that_agree_need_no_reason(fitted: SaliencySelector) -> None:
    decision = next(unseen())
    agreed = dict.fromkeys(ARMS, decision.scores["l1"])
    same = Decision(replace(decision.view, scores=agreed), decision.count)
    why = explain(fitted, same)
    assert (why.rival, why.reasons, why.runner_up) == (None, (), None)
    assert "all metrics would remove the same" in str(why)


def test_every_feature_has_words() -> None:
    for name in [*feature_names(list(METRICS)), "arm"]:
        assert kind_of(name) != OTHERS, name
        text = in_words(name, 0.25, 0.5)
        assert "{" not in text
        assert "_" not in text or any(metric in text for metric in METRICS if "_" in metric), text
    assert "unknown" in in_words("share_l1", float("nan"), 0.5)
    assert kind_of("a feature of the future") == OTHERS


@pytest.fixture(scope="module")
def plan() -> Plan:
    return choose(small("plain", 8, norm=True), data(), ratio=0.4)


def test_a_plan_explains_its_groups_after_a_journey_too(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert len(plan.choices) == 2
    for choice in plan.choices:
        why = plan.explain(choice.group)
        assert again.explain(choice.group) == why
        assert why.trusted == choice.metric
        assert why.runner_up == choice.runner_up
        assert (why.count, why.channels) == (len(choice.remove), choice.channels)
        assert why.predicted_nats == choice.predicted_nats
        assert why.taken is None
    assert len(plan.to_json()) < 6000 * len(plan.choices)


def test_a_verified_choice_says_whether_another_was_taken() -> None:
    model, batches, said = network(), list(calibration()), set()
    for ratio, verify in product((0.1, 0.2, 0.3, 0.4, 0.5), (2, 3)):
        found = choose(model, batches, ratio=ratio, verify=verify)
        again = Plan.from_json(found.to_json())
        for choice in found.choices:
            text, why = str(again.explain(choice.group)), again.explain(choice.group)
            assert why.against_trusted == choice.against_trusted
            if choice.against_trusted is None:
                assert (why.taken, "verified" in text) == (None, False)
                continue
            kept = choice.metric == why.trusted
            assert (choice.against_trusted.nats == 0) == kept
            assert ("verified: no other candidate that was tried" in text) == kept
            assert (f"the choice of {choice.metric} was taken instead" in text) != kept
            said.add(kept)
    assert said == {True, False}


def test_the_plan_of_several_rounds_explains_the_last(plan: Plan) -> None:
    result = prune(small("plain", 8, norm=True), data(), ratio=0.5, rounds=2)
    for choice in result.plan.choices:
        why = result.plan.explain(choice.group)
        rounds = [c for p in result.rounds for c in p.choices if c.group == choice.group]
        last = [c for c in rounds if c.metric == choice.metric][-1]
        assert why == last.explanation


@pytest.mark.parametrize("limit", [None, 0.02])
def test_only_what_is_carried_out_is_explained(
    monkeypatch: pytest.MonkeyPatch, limit: float | None
) -> None:
    asked: list[int] = []
    contributions = SaliencySelector.contributions

    def counted(learnt: SaliencySelector, features: Matrix) -> Matrix:
        asked.append(len(features))
        return contributions(learnt, features)

    monkeypatch.setattr(SaliencySelector, "contributions", counted)
    asked_for = {"keep_macs": 0.4, "rounds": 3, "max_loss_change": limit, "repair": False}
    result = prune(small("plain", 12, seed=7), data(), **asked_for)  # type: ignore[arg-type]
    if limit is not None:
        # Steps were tried and taken back.
        assert "max_loss_change" in result.plan.warnings[-1]
    choices = [choice for plan in result.rounds for choice in plan.choices]
    assert choices
    assert sum(asked) == 2 * len(choices)  # The trusted metric's candidate, and its rival's.
    assert all(choice.explanation is not None for choice in choices)
    choose(small("plain", 8), data(), ratio=0.4, verify=3)
    assert sum(asked) == 2 * (len(choices) + 2)


def test_what_has_no_explanation_says_why(plan: Plan) -> None:
    with pytest.raises(SelectorError, match=r"nothing from a group 'stemm'; nearest: stem, next"):
        plan.explain("stemm")
    with pytest.raises(SelectorError, match="'head' is not pruned: no layer reads it"):
        plan.explain("head")
    model = small("plain", 8, norm=True)
    one = choose(model, data(), criterion="l1", ratio=0.4)
    with pytest.raises(SelectorError, match=r"'l1' is one metric.*use criterion='selector'"):
        one.explain("stem")
    measured = choose(model, data(), criterion="oracle", ratio=0.4)
    with pytest.raises(SelectorError, match=r"'oracle' measures every.*use criterion='selector'"):
        measured.explain("stem")
    fields = json.loads(plan.to_json())
    for row in fields["choices"]:
        row.pop("explanation")
    old = Plan.from_json(json.dumps(fields))
    with pytest.raises(SelectorError, match="made without explanations; make it again"):
        old.explain("stem")
    for row in fields["choices"]:
        row["explanation"] = {"trusted": "l1"}
    with pytest.raises(SelectorError, match="not a plan saved by to_json"):
        Plan.from_json(json.dumps(fields))
