"""`explain`: why the selector trusts a metric, by the boosters' own contributions, in words."""

import math

import numpy as np

from selector.errors import SelectorError
from selector.explanation import Explanation, Reason, Unusual
from selector.facts import Decision
from selector.learning import DAMAGE_OFFSET, Described
from selector.novelty import NUMBERS
from selector.pairs import Matrix
from selector.prediction import Prediction
from selector.selection import SaliencySelector
from selector.wording import fact_in_words, in_words, kind_of

TOLD = 2
"""Features of a kind that are told with their values."""
UNUSUAL = 3
"""Numbers that are told of how far a decision is from the training decisions."""


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
    return predicted_and_explained(selector, decision, against)[1]


def predicted_and_explained(
    selector: SaliencySelector, decision: Decision, against: str | None = None
) -> tuple[Prediction, Explanation]:
    """What the selector predicts for a decision, and why; arguments and errors as `explain`."""
    seen = selector.described([decision])
    prediction = selector.predict_described(seen)[0]
    arms = list(prediction.proposals)
    if against is not None and against not in arms:
        raise SelectorError(f"{against!r} proposes nothing here; known: {', '.join(arms)}")
    differs = _differs(prediction, selector.single_best_)
    rival = against or (selector.single_best_ if differs else prediction.runner_up)
    pair = [arms.index(name) for name in (prediction.trusted, rival or prediction.trusted)]
    features = seen.features[pair]
    parts = selector.contributions(features)
    nats = prediction.loss_change_nats[prediction.trusted]
    damage = selector.damage_weight_ * math.log(nats + DAMAGE_OFFSET)
    reasons = _reasons(selector.feature_names, features, parts, (prediction.trusted, rival))
    return prediction, Explanation(
        channels=len(next(iter(decision.scores.values()))),
        count=decision.count,
        trusted=prediction.trusted,
        runner_up=prediction.runner_up,
        single_best=selector.single_best_,
        predicted_best=min(prediction.cost, key=prediction.cost.__getitem__),
        gain=prediction.gain,
        gain_error=prediction.gain_error,
        credible=prediction.gain > selector.caution * prediction.gain_error,
        fell_back=prediction.fell_back,
        differs=differs,
        expected_regret=max(0.0, float(parts[0].sum()) - damage),
        predicted_nats=nats,
        predicted_interval=prediction.loss_change_interval[prediction.trusted],
        novelty=prediction.novelty,
        unusual=_unusual(selector, seen),
        rival=rival,
        reasons=reasons,
    )


def _differs(prediction: Prediction, single_best: str) -> bool:
    sets = prediction.proposals
    return sets[single_best] != sets[prediction.trusted]


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
            for n in telling[:TOLD]
            if weights[n] * weight > 0
        )
        if weight:
            found.append(Reason(kind, weight, values))
    return tuple(sorted(found, key=lambda reason: -abs(reason.weight)))


def _unusual(selector: SaliencySelector, seen: Described) -> tuple[Unusual, ...]:
    gaps, facts = selector.familiar.gaps(seen.facts)[0], seen.facts[0]
    found = []
    for number in np.argsort(-np.abs(gaps), kind="stable")[:UNUSUAL].tolist():
        words, text = fact_in_words(NUMBERS[number])
        usual = float(selector.familiar.mean[number])
        found.append(Unusual(words, text(facts[number]), text(usual), float(gaps[number])))
    return tuple(found)
