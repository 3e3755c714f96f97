"""Why a metric is trusted, from what every feature adds to the prediction, in words."""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from selector.errors import SelectorError
from selector.learning.explanation import Explanation, Reason, Unusual
from selector.learning.prediction import Prediction
from selector.learning.selector import SaliencySelector
from selector.learning.table import DAMAGE_OFFSET, NUMBERS
from selector.records.decision import CONTEXT, FACTS, Decision
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
    rivals = [_rival(selector, prediction, against) for prediction in predictions]
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


def _rival(selector: SaliencySelector, prediction: Prediction, against: str | None) -> str | None:
    """The metric that the reasons compare with."""
    if against is not None and against not in prediction.proposals:
        known = ", ".join(prediction.proposals)
        raise SelectorError(f"{against!r} proposes nothing here; known: {known}")
    differs = _differs(prediction, selector.single_best_)
    return against or (selector.single_best_ if differs else prediction.runner_up)


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
        differs=_differs(prediction, selector.single_best_),
        expected_regret=max(0.0, float(parts[0].sum()) - damage),
        predicted_nats=nats,
        predicted_interval=prediction.loss_change_interval[prediction.trusted],
        novelty=prediction.out_of_distribution,
        unusual=_unusual(selector, facts),
        rival=rival,
        reasons=_reasons(selector.feature_names, features, parts, (prediction.trusted, rival)),
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


Text = Callable[[float], str]


def plain(value: float) -> str:
    """A number with three digits."""
    return f"{value:.3g}"


def power_of_two(value: float) -> str:
    """What a logarithm to base two stands for."""
    return f"{2**value:.0f}"


def power_of_ten(value: float) -> str:
    """What a logarithm to base ten stands for."""
    return f"{10**value:.3g}"


THE_LAYER = "the layer, as it suits the two metrics"
THE_STATE = "the network's state and the size of the step"
OTHERS = "what else was learnt"

KINDS: tuple[tuple[str, str], ...] = (
    (r"(share|excess)_.+|mean_excess|rank_of_excess", "what the other metrics say of its choice"),
    (r"(plain|compensated)_.+", "what the set does as a whole, by pairs of channels"),
    (
        r"(residual|fisher_residual|softened_second)_.+",
        "what the rest cannot make up for, by views that read no labels",
    ),
    (r"(log|regret)_.+", "the damage that metrics in nats predict"),
    (r"own_.+", "how its scores are spread, and where they part"),
    (r"agreement_.+|votes|mean_overlap", "how far it agrees with the other metrics"),
    (r"ratio|one_channel", THE_STATE),
    (r"arm", "which metric it is, all else being equal"),
)
"""Pattern of a feature's name -> its kind in words, the first that fits; facts go by name."""

VALUES: tuple[tuple[str, str, Text], ...] = (
    (r"share_(.+)", "share of {0}'s total that goes, a random set's being 1", plain),
    (r"excess_(.+)", "what goes beyond {0}'s own choice", plain),
    (r"mean_excess", "what goes beyond all metrics' own choices", power_of_ten),
    (r"rank_of_excess", "rank in what goes beyond all metrics' own choices, 0 to 1", plain),
    (r"(plain|compensated)_log_second", "{0} damage of second order, in nats", power_of_ten),
    (r"(plain|compensated)_signed", "{0} effect of first order, over its spread", plain),
    (
        r"(plain|compensated)_interaction",
        "{0} damage of the set over that of its channels alone",
        power_of_ten,
    ),
    (
        r"(plain|compensated)_log_excess",
        "{0} damage over the least damaging choice's",
        power_of_ten,
    ),
    (r"(plain|compensated)_regret", "regret by the {0} damage of both orders", plain),
    (r"(plain|compensated)_second_regret", "regret by the {0} damage of second order", plain),
    (r"residual_log", "share of what the next layers read that a refit cannot save", power_of_ten),
    (r"residual_excess", "the same over the least of all candidates", power_of_ten),
    (r"residual_regret", "regret by that share", plain),
    (r"fisher_residual_log", "nats that a refit cannot save", power_of_ten),
    (r"fisher_residual_excess", "these nats over the least of all candidates", power_of_ten),
    (r"fisher_residual_regret", "regret by these nats", plain),
    (r"softened_second_log", "nats of the set without a refit, no labels read", power_of_ten),
    (r"softened_second_excess", "these nats without a refit over the least", power_of_ten),
    (r"softened_second_regret", "regret by the nats without a refit", plain),
    (r"log_(.+)", "nats that {0} predicts", power_of_ten),
    (r"regret_(.+)", "regret by the nats that {0} predicts", plain),
    (r"own_spread", "spread of its scores over their mean", plain),
    (r"own_skew", "skew of its scores", plain),
    (r"own_tail", "its highest score over the mean", plain),
    (r"own_gini", "inequality (Gini) of its scores", plain),
    (r"own_cliff", "step between what goes and what stays, in spreads", plain),
    (r"agreement_(.+)", "rank correlation with {0}", plain),
    (r"votes", "share of the metrics with the same choice", plain),
    (r"mean_overlap", "mean overlap with the other choices", plain),
)
"""Pattern of a feature's name -> words for it, and how its value is written."""


def kind_of(feature: str) -> str:
    """The kind of a feature, in words.

    >>> kind_of("share_fisher"), kind_of("kernel")
    ('what the other metrics say of its choice', 'the layer, as it suits the two metrics')
    """
    if feature in FACTS:
        return THE_LAYER
    if feature in CONTEXT:
        return THE_STATE
    return next((kind for pattern, kind in KINDS if re.fullmatch(pattern, feature)), OTHERS)


def fact_in_words(name: str) -> tuple[str, Text]:
    """Words for a fact or a number of the context, and how its value is written.

    >>> words, text = fact_in_words("log_fan_in")
    >>> f"{words} {text(7.0)}"
    'fan in 128'
    """
    words = name.removeprefix("log_").replace("_", " ")
    return words, power_of_two if name.startswith("log_") else plain


def in_words(feature: str, own: float, rival: float) -> str:
    """What a feature says of two candidates of one decision.

    >>> in_words("excess_fisher", 0.0, 0.25)
    "what goes beyond fisher's own choice: 0 against 0.25"
    >>> in_words("kernel", 3.0, 3.0)
    'kernel 3'
    """
    if feature in (*FACTS, *CONTEXT):
        words, text = fact_in_words(feature)
        return f"{words} {text(own)}"
    words, text = _words_for(feature)
    first, second = (text(x) if math.isfinite(x) else "unknown" for x in (own, rival))
    return f"{words}: {first}" + (f" against {second}" if first != second else ", for both")


def _words_for(feature: str) -> tuple[str, Text]:
    for pattern, words, text in VALUES:
        if match := re.fullmatch(pattern, feature):
            return words.format(*match.groups()), text
    return fact_in_words(feature)
