"""The selector: learns to route, travels unchanged, and does not care how weights are scaled."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from selector.data.calibration import Calibration
from selector.errors import SelectorError
from selector.learning.artefact import FORMAT_VERSION, write_artefact
from selector.learning.features import candidates, describe, feature_names
from selector.learning.regret import CAP, regrets
from selector.learning.selector import SaliencySelector
from selector.learning.table import single_best, training_table
from selector.network.tracing import find_groups
from selector.records.decision import Context, Decision, GroupView
from selector.records.describe import describe_group, describe_run
from selector.records.records import Records
from selector.saliency.proposals.knowledge import measure_sets, set_proposals
from selector.saliency.proposals.registry import PROPOSALS
from selector.saliency.registry import METRICS, arms
from selector.saliency.scoring import score_signals
from selector.statistics.collect import measure_signals
from tests.made_records import METRICS as ARMS
from tests.made_records import facts, lawful
from tests.networks import data, small


@pytest.fixture(scope="module")
def fitted() -> SaliencySelector:
    records = lawful([f"network{i}" for i in range(10)], 0)
    return SaliencySelector(trees=200, caution=0.25).fit(records)


def test_it_learns_whom_to_trust_where(fitted: SaliencySelector) -> None:
    right = total = 0
    for group, decision, rows in lawful(["unseen1", "unseen2"], 99).decisions():
        prediction = fitted.predict(decision)
        best = min(rows, key=lambda row: row.nats).arm
        assert best == ("l1" if group.facts.kernel == 3 else "taylor")
        right += prediction.trusted == best
        total += 1
    # The single best arm is right in half of them.
    assert right / total > 0.9


def test_it_learns_how_much_it_hurts(fitted: SaliencySelector) -> None:
    predicted, true = [], []
    for _, decision, rows in lawful(["unseen"], 98).decisions():
        prediction = fitted.predict(decision)
        for row in rows:
            predicted.append(prediction.loss_change_nats[row.arm])
            true.append(row.nats)
    assert np.corrcoef(np.log(predicted), np.log(true))[0, 1] > 0.8


def test_a_prediction_is_consistent(fitted: SaliencySelector) -> None:
    for _, decision, _ in lawful(["unseen"], 97).decisions():
        prediction = fitted.predict(decision)
        assert set(prediction.proposals) == set(prediction.cost) == set(ARMS)
        assert prediction.trusted in ARMS
        best = min(prediction.cost, key=prediction.cost.__getitem__)
        assert prediction.trusted == (fitted.single_best_ if prediction.fell_back else best)
        assert prediction.gain == pytest.approx(
            prediction.cost[fitted.single_best_] - prediction.cost[best]
        )
        assert prediction.gain >= 0
        everyone = prediction.shortlist(None)
        assert everyone[0] == prediction.trusted
        assert prediction.shortlist(2) == everyone[:2]
        fixed = prediction.proposals[fitted.single_best_]
        assert fixed in {prediction.proposals[arm] for arm in everyone[:2]}
        later = [prediction.cost[arm] for arm in everyone[2:]]
        assert later == sorted(later)
        distinct = {prediction.proposals[arm] for arm in everyone}
        assert len(distinct) == len(everyone) == len(set(prediction.proposals.values()))
        assert (prediction.runner_up is None) == (len(everyone) == 1)


def test_arms_that_agree_are_offered_once(fitted: SaliencySelector) -> None:
    _, decision, _ = next(lawful(["unseen"], 96).decisions())
    same = dict.fromkeys(ARMS, decision.scores["l1"])
    prediction = fitted.predict(Decision(replace(decision.view, scores=same), 3))
    assert prediction.shortlist(None) == [prediction.trusted]
    assert prediction.runner_up is None
    assert not prediction.fell_back


def test_save_and_load_give_identical_predictions(fitted: SaliencySelector, tmp_path: Path) -> None:
    fitted.save(tmp_path / "one")
    loaded = SaliencySelector.load(tmp_path / "one")
    assert loaded.get_params() == fitted.get_params()
    for _, decision, _ in lawful(["unseen"], 95).decisions():
        one, other = fitted.predict(decision), loaded.predict(decision)
        assert one.cost == other.cost
        assert one.loss_change_nats == other.loss_change_nats
        assert (one.trusted, one.gain, one.gain_error) == (
            other.trusted,
            other.gain,
            other.gain_error,
        )
    loaded.save(tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_the_same_records_give_the_same_selector(fitted: SaliencySelector, tmp_path: Path) -> None:
    again = SaliencySelector(trees=200, caution=0.25).fit(
        lawful([f"network{i}" for i in range(10)], 0)
    )
    for _, decision, _ in lawful(["unseen"], 94).decisions():
        assert again.predict(decision).cost == fitted.predict(decision).cost


def test_the_shipped_selector_answers_for_a_real_network() -> None:
    shipped = SaliencySelector.shipped()
    model, batches = small("two_consumers", 6, norm=True), data(8, 4)
    groups = find_groups(model, batches[0][0]).prunable
    sets = measure_sets(model, Calibration(batches), groups, set_proposals(shipped.set_arms))
    for name, decision in decisions(model).items():
        known = Decision(replace(decision.view, sets=sets[name]), decision.count)
        prediction = shipped.predict(known)
        assert prediction.trusted in METRICS or prediction.trusted in PROPOSALS
        assert all(np.isfinite(list(prediction.cost.values())))


def test_single_best_by_hand() -> None:
    records = lawful(["a", "b"], 3)
    costs: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _, _, rows in records.decisions():
        nats = sorted(row.nats for row in rows)
        for row in rows:
            spread = nats[1] - nats[0] + 0.002
            costs[row.arm].append(min((row.nats - nats[0]) / spread, CAP))
        expected = [(row.nats - nats[0]) / (nats[1] - nats[0] + 0.002) for row in rows]
        assert regrets(np.array([row.nats for row in rows])) == pytest.approx(expected)
    best = min(costs, key=lambda arm: sum(costs[arm]))
    assert single_best(training_table(records, ARMS, ARMS)) == best


def test_networks_weigh_alike_not_decisions() -> None:
    few, many = lawful(["few"], 3, groups=2), lawful(["many"], 4, groups=12)
    weighed = training_table(few + many, ARMS, ARMS, {"many": 3.0})
    for table, asked in ((training_table(few + many, ARMS, ARMS), 1.0), (weighed, 3.0)):
        for name, weight in (("few", 1.0), ("many", asked)):
            assert table.weight[table.network == name].sum() == pytest.approx(weight)
    # What one network says often counts no more than what the other says once.
    alone = [training_table(one, ARMS, ARMS) for one in (few, many)]
    means = {
        arm: sum(float(table.regret[table.seen.arm == number].mean()) for table in alone)
        for number, arm in enumerate(ARMS)
    }
    assert single_best(training_table(few + many, ARMS, ARMS)) == min(means, key=means.__getitem__)


def decisions(model: nn.Module) -> dict[str, Decision]:
    batches = data(8, 4)
    groups = find_groups(model, batches[0][0])
    signals = measure_signals(model, batches, groups.prunable)
    scores = score_signals(signals)
    return {
        name: Decision(
            GroupView(
                describe_group(model, group, groups.costs, signals[name]),
                describe_run(signals[name].run, 1.0),
                {metric: values.numpy() for metric, values in scores[name].items()},
            ),
            2,
        )
        for name, group in groups.prunable.items()
    }


@pytest.mark.parametrize("act", ["relu", "leaky_relu"])
@pytest.mark.parametrize("style", ["plain", "two_consumers", "flatten"])
def test_features_do_not_see_a_scale_that_the_next_layer_undoes(style: str, act: str) -> None:
    model = small(style, 6, act=act)
    scaled = copy.deepcopy(model)
    for parameter in scaled.stem.parameters():
        parameter.data *= 4
    for name in ("next", "first", "second", "hidden"):
        if hasattr(scaled, name):
            getattr(scaled, name).weight.data /= 4
    check_seen_alike(model, scaled)


def test_features_do_not_see_a_scale_that_batchnorm_undoes() -> None:
    model = small("plain", 6, norm=True)
    model.norm.eps = 0.0
    scaled = copy.deepcopy(model)
    scaled.stem.weight.data *= 4
    scaled.norm.running_mean *= 4
    scaled.norm.running_var *= 16
    check_seen_alike(model, scaled)


def check_seen_alike(model: nn.Module, scaled: nn.Module) -> None:
    images = data()[0][0]
    assert torch.allclose(scaled(images), model(images))
    before, after = decisions(model)["stem"], decisions(scaled)["stem"]
    metrics = [*arms(), "random"]
    names = feature_names(metrics)
    proposals = candidates(before, arms())
    assert candidates(after, arms()) == proposals
    one = describe(before, proposals, metrics)
    other = describe(after, proposals, metrics)
    seen = [
        name
        for name, x, y in zip(names, one.T, other.T, strict=True)
        if not np.allclose(x, y, rtol=1e-5, atol=1e-7, equal_nan=True)
    ]
    assert seen == []


def test_the_law_of_scales_can_fail() -> None:
    """A scale that nothing undoes is seen."""
    model = small("plain", 6, act="silu")
    scaled = copy.deepcopy(model)
    scaled.stem.weight.data *= 4
    names = ["l1", "taylor"]
    one, other = decisions(model)["stem"], decisions(scaled)["stem"]
    assert not np.allclose(
        describe(one, candidates(one, names), names),
        describe(other, candidates(other, names), names),
    )


def test_shares_by_hand() -> None:
    chance = np.random.default_rng(0)
    scores = {"l1": np.array([1.0, 2.0, 3.0, 4.0]), "taylor": np.array([4.0, 1.0, 1.0, 2.0])}
    view = GroupView(facts(3.0, 4, chance), Context(1.0, 0.5, 0.5, 3.0, 8.0), scores)
    decision = Decision(view, 2)
    proposals = candidates(decision, ["l1", "taylor"])
    assert proposals == {"l1": (0, 1), "taylor": (1, 2)}
    names = feature_names(["l1", "taylor"])
    rows = [
        dict(zip(names, row, strict=True))
        for row in describe(decision, proposals, ["l1", "taylor"]).tolist()
    ]
    # Half of the channels go; a random set would take a half of every total.
    assert rows[0]["share_l1"] == pytest.approx((3 / 10) / 0.5)
    assert rows[0]["share_taylor"] == pytest.approx((5 / 8) / 0.5)
    assert rows[0]["excess_taylor"] == pytest.approx((3 / 8) / 0.5)
    assert rows[0]["excess_l1"] == pytest.approx(0)
    assert rows[1]["share_l1"] == pytest.approx((5 / 10) / 0.5)
    assert rows[1]["excess_taylor"] == pytest.approx(0)
    assert rows[0]["agreement_l1"] == pytest.approx(1)
    assert rows[0]["ratio"] == 0.5
    assert rows[0]["mean_overlap"] == pytest.approx((1 + 0.5) / 2)


@pytest.fixture
def saved(fitted: SaliencySelector, tmp_path: Path) -> Path:
    fitted.save(tmp_path / "selector")
    return tmp_path / "selector"


@pytest.mark.parametrize("name", ["damage.txt", "regret_0.txt"])
def test_a_changed_file_is_named(saved: Path, name: str) -> None:
    path = saved / name
    path.write_text(path.read_text().replace("leaf_value=", "leaf_value=1", 1))
    with pytest.raises(SelectorError, match=f"{name} is damaged: its checksum"):
        SaliencySelector.load(saved)


@pytest.mark.parametrize("name", ["damage.txt", "selector.json", "regret_4.txt"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(SelectorError, match=f"is not a saved selector.*{name}"):
        SaliencySelector.load(saved)


@pytest.mark.parametrize(
    ("key", "value", "culprit"),
    [
        (
            "format_version",
            99,
            f"format 99, this version reads {FORMAT_VERSION}; fit the selector again",
        ),
        ("metrics", [*ARMS, "astrology"], "metric 'astrology', which is not in the table.*fit"),
    ],
)
def test_another_format_or_an_unknown_metric_is_named(
    saved: Path, key: str, value: object, culprit: str
) -> None:
    body = json.loads((saved / "selector.json").read_text())
    boosters = {
        path.stem: path.read_text() for path in sorted(saved.glob("*.txt"))
    }  # A whole artefact, written by somebody else's version.
    write_artefact(saved, {k: v for k, v in body.items() if k != "sha256"} | {key: value}, boosters)
    if key == "format_version":
        path = saved / "selector.json"
        now = f'"format_version": {FORMAT_VERSION}'
        path.write_text(path.read_text().replace(now, '"format_version": 99'))
    with pytest.raises(SelectorError, match=culprit):
        SaliencySelector.load(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "{}",
        f'{{"format_version": {FORMAT_VERSION}}}',
        "[]",
        f'{{"format_version": {FORMAT_VERSION}, "sha256": {{}}}}',
    ],
)
def test_a_description_that_is_none_is_named(saved: Path, text: str) -> None:
    (saved / "selector.json").write_text(text)
    with pytest.raises(SelectorError, match="is not a saved selector"):
        SaliencySelector.load(saved)


def test_what_has_not_learnt_says_so(tmp_path: Path) -> None:
    _, decision, _ = next(lawful(["any"], 0).decisions())
    with pytest.raises(SelectorError, match=r"not learnt yet; call fit\(records\) or load"):
        SaliencySelector().predict(decision)
    with pytest.raises(SelectorError, match="not learnt yet"):
        SaliencySelector().save(tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_one_network_or_one_arm_teaches_nothing() -> None:
    with pytest.raises(SelectorError, match=r"records of 1 network cannot.*at least two"):
        SaliencySelector().fit(lawful(["alone"], 0))
    records = lawful(["a", "b"], 0)
    lonely = Records(
        records.networks, records.groups, tuple(r for r in records.candidates if r.arm == "l1")
    )
    with pytest.raises(SelectorError, match="1 known arm; record at least two metrics"):
        SaliencySelector().fit(lonely)


def test_scores_without_the_single_best_are_refused(fitted: SaliencySelector) -> None:
    _, decision, _ = next(lawful(["any"], 0).decisions())
    scores = {k: v for k, v in decision.scores.items() if k != fitted.single_best_}
    culprit = f"lack '{fitted.single_best_}'.*score with all the metrics"
    with pytest.raises(SelectorError, match=culprit):
        fitted.predict(Decision(replace(decision.view, scores=scores), 1))
