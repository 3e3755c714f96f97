"""What is to be expected of a plan, and of all rounds to come, before anything is cut."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from selector.allocation import Stage, allocate_evenly
from selector.damage import allocate_by_damage, damage_curve
from selector.expectation import Expected, Interval, classes_said, expect
from selector.features import Decision
from selector.method import Method
from selector.objective import Loss
from selector.plan import Plan
from selector.shrinking import shrink_all
from selector.surveying import Survey


def allocated(stage: Stage, decisions: Mapping[str, Decision], method: Method) -> dict[str, int]:
    """Channels that every group loses now."""
    if method.allocation == "even":
        return allocate_evenly(stage)
    assert method.selector is not None
    curves = {
        name: damage_curve(method.selector, decisions[name], stage.options(name))
        for name in stage.free
    }
    return allocate_by_damage(stage, curves)


def expected_of(model: nn.Module, plan: Plan, survey: Survey, loss: Loss | None) -> Expected | None:
    """Loss and accuracy that are expected of a plan; None where it was not predicted."""
    changes = [choice.predicted_nats for choice in plan.choices]
    intervals = [choice.predicted_interval for choice in plan.choices]
    known = [change for change in changes if change is not None]
    ends = [interval for interval in intervals if interval is not None]
    if not known or len(known) < len(changes) or len(ends) < len(changes):
        return None
    logits = classes_said(model, survey.scoring) if loss is None else None
    return expect(known, ends, survey.base_loss, logits)


def foresee(
    model: nn.Module,
    survey: Survey,
    stage: Stage,
    method: Method,
    shares: Sequence[float],
    *,
    loss: Loss | None,
) -> Expected | None:
    """What all rounds together are expected to do, as far as can be told before the first.

    The rounds are gone through on paper: allocated, predicted and cut with the scores of today,
    those of the channels that are left. Nothing is read but the images for today's accuracy.

    Args:
        model: The network as it is.
        survey: Its scores.
        stage: Where it stands.
        method: How channels are chosen; only the selector predicts what it costs.
        shares: The part of the way that is done after each round.
        loss: Mean loss of a batch; cross-entropy by default.
    """
    if method.criterion != "selector" or method.selector is None:
        return None
    groups, decisions = stage.groups, dict(survey.decisions)
    changes: list[float] = []
    ends: list[Interval] = []
    for share in shares:
        now = replace(stage, groups=groups, share=share)
        removals = []
        for name, count in allocated(now, decisions, method).items():
            if count:
                prediction = method.selector.predict(replace(decisions[name], count=count))
                arm = prediction.trusted
                changes.append(prediction.loss_change_nats[arm])
                ends.append(prediction.loss_change_interval[arm])
                removals.append((groups.prunable[name], prediction.proposals[arm]))
        groups = shrink_all(groups, removals)
        kept = groups.costs.total("macs") / stage.start.total("macs")
        gone = {group.name: channels for group, channels in removals}
        decisions = {
            name: _after(decisions[name], gone.get(name, ()), kept) for name in groups.prunable
        }
    logits = classes_said(model, survey.scoring) if loss is None else None
    return expect(changes, ends, survey.base_loss, logits, rounds=len(shares))


def _after(decision: Decision, gone: Sequence[int], macs_kept: float) -> Decision:
    """The same decision when some channels are gone and the network is smaller."""
    scores = {name: np.delete(values, list(gone)) for name, values in decision.scores.items()}
    return replace(decision, scores=scores, context=replace(decision.context, macs_kept=macs_kept))
