"""What is computed for many decisions at once is what loops say of each."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from selector.learning.features import (
    Opinions,
    candidates,
    feature_names,
)
from selector.learning.selector import SaliencySelector
from selector.records.decision import Decision
from selector.records.records import Records
from selector.saliency.scoring import lowest
from tests.made_records import METRICS, lawful, made

Chance = np.random.Generator


def decisions_of(records: Records) -> list[Decision]:
    return [decision for _, decision, _ in records.decisions()]


def test_candidates_are_the_lowest_scores_ties_by_number() -> None:
    found = decisions_of(made(["a", "b"]))
    tied = {"l1": np.array([2.0, 1.0, 1.0, 0.0, 1.0]), "taylor": np.zeros(5)}
    view = replace(found[0].view, scores=tied)
    found += [Decision(view, count) for count in (1, 2, 3, 5)]
    for decision in found:
        one = candidates(decision, METRICS)
        expected = {
            arm: lowest(torch.from_numpy(scores), decision.count)
            for arm, scores in decision.scores.items()
        }
        assert one == expected
        for arm, channels in one.items():
            order = sorted(range(len(decision.scores[arm])), key=decision.scores[arm].__getitem__)
            assert channels == tuple(sorted(order[: decision.count]))


def test_how_scores_are_spread_by_loops() -> None:
    chance = np.random.default_rng(3)
    scores = {name: chance.uniform(size=7) for name in METRICS}
    said = Opinions.of(scores, METRICS)
    for count in (1, 3, 7):
        rows = said.distribution(range(3), count)
        for name, row in zip(METRICS, rows.tolist(), strict=True):
            values = sorted(scores[name].tolist())
            mean = sum(values) / 7
            deviation = (sum((v - mean) ** 2 for v in values) / 7) ** 0.5
            gini = sum(abs(v - w) for v in values for w in values) / (2 * 7 * sum(values))
            expected = [
                deviation / mean,
                sum((v - mean) ** 3 for v in values) / 7 / deviation**3,
                values[-1] / mean,
                gini,
                (values[min(count, 6)] - values[count - 1]) / deviation,
            ]
            assert row == pytest.approx(expected)


def test_many_decisions_at_once_are_each_by_itself() -> None:
    learnt = SaliencySelector(trees=10).fit(lawful(["a", "b", "c"], 0, groups=4))
    asked = decisions_of(lawful(["d"], 1, groups=4))
    together = learnt.described(asked)
    assert together.features.shape[1] == len([*feature_names(METRICS), "arm"])
    for number, (decision, one) in enumerate(zip(asked, learnt.predict_many(asked), strict=True)):
        alone = learnt.described([decision])
        np.testing.assert_array_equal(
            alone.features, together.features[together.decision == number]
        )
        assert learnt.predict(decision).cost == one.cost
        assert learnt.predict(decision).shortlist(None) == one.shortlist(None)
