"""Names of features in plain words, and their values as they are written in explanations."""

import math
import re
from collections.abc import Callable

from selector.records.decision import CONTEXT, FACTS

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
