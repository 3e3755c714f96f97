"""What is to be expected of a plan, and of all rounds to come, before anything is cut."""

from dataclasses import replace

from torch import nn

from selector.learning.selector import SaliencySelector
from selector.planning.candidates import Survey, Trial
from selector.planning.expectation import Expected, Logits, classes_said, expect
from selector.planning.method import Method
from selector.planning.plan import Plan
from selector.planning.stage import Stage
from selector.records.decision import Decision
from selector.typing import Interval


def expected_of(
    model: nn.Module, plan: Plan, survey: Survey, selector: SaliencySelector | None
) -> Expected | None:
    """Loss and accuracy that are expected of a plan; None where it was not predicted."""
    changes = [choice.predicted_nats for choice in plan.choices]
    intervals = [choice.predicted_interval for choice in plan.choices]
    known = [change for change in changes if change is not None]
    ends = [interval for interval in intervals if interval is not None]
    if not known or len(known) < len(changes) or len(ends) < len(changes):
        return None
    composing = None if selector is None else selector.composing_
    return expect(known, ends, survey.base_loss, _logits(model, survey), composing=composing)


def _logits(model: nn.Module, survey: Survey) -> Logits | None:
    """What the network says of the scoring images; None where the loss is the user's own."""
    return classes_said(model, survey.scoring) if survey.scoring.loss is None else None


def foresee(
    model: nn.Module, survey: Survey, stage: Stage, method: Method, rounds: int
) -> Expected | None:
    """What all rounds together are expected to do, before the first; None without a selector.

    The whole way is allocated and predicted as one cut, with the scores of now, and with what the
    first round has measured for its widths. One forward pass over the scoring images, for the
    accuracy of now.

    Args:
        model: The network as it is.
        survey: Its scores.
        stage: Where it stands.
        method: How channels are chosen; only the selector predicts what it costs.
        rounds: Rounds to come.
    """
    selector = method.selector
    if selector is None:
        return None
    trial = Trial(model=model, survey=survey, recalibrate=method.recalibrate, foretelling=True)
    spent = method.allocation.allocate(replace(stage, share=1.0), trial, method.criterion)
    asked = [Decision(survey.views[name], n) for name, n in spent.counts.items() if n]
    changes, ends = list[float](), list[Interval]()
    for prediction in selector.predict_many(asked):
        changes.append(prediction.loss_change_nats[prediction.trusted])
        ends.append(prediction.loss_change_interval[prediction.trusted])
    return expect(
        changes,
        ends,
        survey.base_loss,
        _logits(model, survey),
        rounds=rounds,
        composing=selector.composing_,
    )


def highest_predicted(plan: Plan) -> float | None:
    """The ends of the groups' predicted intervals, summed; None where nothing was predicted."""
    ends = [choice.predicted_interval for choice in plan.choices]
    return None if None in ends else sum(end[1] for end in ends if end is not None)
