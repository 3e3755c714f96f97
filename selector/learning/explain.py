"""Why a metric is trusted, from what every feature adds to the prediction, in words."""

import math
from collections.abc import Sequence

import numpy as np

from selector.errors import SelectorError
from selector.learning.explanation import Explanation, Reason, Unusual
from selector.learning.feature_words import fact_in_words, in_words, kind_of
from selector.learning.prediction import Prediction
from selector.learning.selector import SaliencySelector
from selector.learning.table import DAMAGE_OFFSET, NUMBERS
from selector.records.decision import Decision
from selector.typing import Matrix

SHOWN = 2
"""Features of each kind that are shown with their values."""
UNUSUAL = 3
"""Numbers that are shown of those in which a decision differs from the training decisions."""


def explain(
    selector: SaliencySelector, decision: Decision, against: str | None = None
) -> Explanation:
    """Say why the selector trusts a metric in a decision.

    Args:
        selector: Fitted or loaded.
        decision: What is asked.
        against: The metric that the reasons compare with; by default the single best, or the
            runner-up where the single best would remove the same channels.

    Raises:
        SelectorError: Not fitted, scores without the single best, or `against` is no metric that
            proposes anything here.
    """
    return explain_many(selector, [decision], against)[0]


def explain_many(
    selector: SaliencySelector, decisions: Sequence[Decision], against: str | None = None
) -> list[Explanation]:
    """`explain` of several decisions: most of the time is that of calling.

    Raises:
        SelectorError: As `explain`.
    """
    if not decisions:
        return []
    seen = selector.described(decisions)
    predictions = selector.predict_described(seen)
    starts = np.cumsum([0, *(len(found) for found in seen.proposals)])[:-1]
    rivals = [_rival(prediction, against) for prediction in predictions]
    rows = [
        start + list(prediction.proposals).index(name or prediction.trusted)
        for start, prediction, rival in zip(starts, predictions, rivals, strict=True)
        for name in (prediction.trusted, rival)
    ]
    features = seen.features[rows]
    parts = selector.contributions(features)
    return [
        _explanation(
            selector,
            decision,
            predictions[number],
            rivals[number],
            features[2 * number : 2 * number + 2],
            parts[2 * number : 2 * number + 2],
            seen.facts[number],
        )
        for number, decision in enumerate(decisions)
    ]


def _rival(prediction: Prediction, against: str | None) -> str | None:
    """The metric that the reasons compare with."""
    if against is not None and against not in prediction.proposals:
        known = ", ".join(prediction.proposals)
        raise SelectorError(f"{against!r} proposes nothing here; known: {known}")
    differs = _differs(prediction)
    return against or (prediction.single_best if differs else prediction.runner_up)


def _explanation(
    selector: SaliencySelector,
    decision: Decision,
    prediction: Prediction,
    rival: str | None,
    features: Matrix,
    parts: Matrix,
    facts: Matrix,
) -> Explanation:
    """One decision's, from the rows of the trusted metric's candidate and of its rival's."""
    nats = prediction.loss_change_nats[prediction.trusted]
    damage = selector.damage_weight_ * math.log(nats + DAMAGE_OFFSET)
    return Explanation(
        channels=decision.view.channels,
        count=decision.count,
        trusted=prediction.trusted,
        runner_up=prediction.runner_up,
        single_best=selector.single_best_,
        predicted_best=min(prediction.cost, key=prediction.cost.__getitem__),
        gain=prediction.gain,
        gain_error=prediction.gain_error,
        credible=prediction.gain > selector.caution * prediction.gain_error,
        fell_back=prediction.fell_back,
        differs=_differs(prediction),
        expected_regret=max(0.0, float(parts[0].sum()) - damage),
        predicted_nats=nats,
        predicted_interval=prediction.loss_change_interval[prediction.trusted],
        novelty=prediction.out_of_distribution,
        unusual=_unusual(selector, facts),
        rival=rival,
        reasons=_reasons(selector.feature_names, features, parts, (prediction.trusted, rival)),
    )


def _differs(prediction: Prediction) -> bool:
    sets = prediction.proposals
    return sets[prediction.single_best] != sets[prediction.trusted]


def _reasons(
    names: list[str], features: Matrix, parts: Matrix, pair: tuple[str, str | None]
) -> tuple[Reason, ...]:
    """Contributions to the rival's cost less those to the trusted metric's, summed by kind.

    Args:
        names: Of the features.
        features: Of the trusted metric's candidate and of its rival's, shape (2, features).
        parts: Their contributions, shape (2, features + 1).
        pair: The two metrics.
    """
    if pair[1] is None:
        return ()
    weights = parts[1, :-1] - parts[0, :-1]
    kinds: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        kinds.setdefault(kind_of(name), []).append(number)
    found = []
    for kind, numbers in kinds.items():
        weight = float(weights[numbers].sum())
        # Those that pull the way that the kind as a whole does.
        telling = sorted(numbers, key=lambda n: -math.copysign(1.0, weight) * float(weights[n]))
        values = tuple(
            f"{pair[0]}, not {pair[1]}"
            if names[n] == "arm"
            else in_words(names[n], *features[:, n].tolist())
            for n in telling[:SHOWN]
            if weights[n] * weight > 0
        )
        if weight:
            found.append(Reason(kind, weight, values))
    return tuple(sorted(found, key=lambda reason: -abs(reason.weight)))


def _unusual(selector: SaliencySelector, facts: Matrix) -> tuple[Unusual, ...]:
    usual_facts = selector.training_distribution
    gaps = usual_facts.gaps(facts[None])[0]
    found = []
    for number in np.argsort(-np.abs(gaps), kind="stable")[:UNUSUAL].tolist():
        words, text = fact_in_words(NUMBERS[number])
        usual = float(usual_facts.mean[number])
        found.append(Unusual(words, text(facts[number]), text(usual), float(gaps[number])))
    return tuple(found)
