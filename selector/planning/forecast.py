"""What is to be expected of a plan, and of all rounds to come, before anything is cut."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from selector.network.reindexing import shrink_all
from selector.planning.candidates import Survey
from selector.planning.expectation import Expected, Logits, classes_said, expect
from selector.planning.method import Method
from selector.planning.plan import Plan
from selector.planning.stage import Stage
from selector.records.decision import Decision, GroupView
from selector.typing import Interval


def expected_of(model: nn.Module, plan: Plan, survey: Survey) -> Expected | None:
    """Loss and accuracy that are expected of a plan; None where it was not predicted."""
    changes = [choice.predicted_nats for choice in plan.choices]
    intervals = [choice.predicted_interval for choice in plan.choices]
    known = [change for change in changes if change is not None]
    ends = [interval for interval in intervals if interval is not None]
    if not known or len(known) < len(changes) or len(ends) < len(changes):
        return None
    return expect(known, ends, survey.base_loss, _logits(model, survey))


def _logits(model: nn.Module, survey: Survey) -> Logits | None:
    """What the network says of the scoring images; None where the loss is the user's own."""
    return classes_said(model, survey.scoring) if survey.scoring.loss is None else None


SIMULATED_ROUNDS = 3
"""Rounds that are simulated at most: predictions cost time, too."""


def foresee(
    model: nn.Module, survey: Survey, stage: Stage, method: Method, rounds: int
) -> Expected | None:
    """What all rounds together are expected to do, before the first; None without a selector.

    The rounds are simulated: allocated, predicted and cut with the scores of now, those of the
    channels that are left. One forward pass over the scoring images, for the accuracy of now.

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
    groups, views = stage.groups, dict(survey.views)
    changes: list[float] = []
    ends: list[Interval] = []
    steps = min(rounds, SIMULATED_ROUNDS)
    for step in range(1, steps + 1):
        now = replace(stage, groups=groups, share=step / steps)
        removals = []
        for name, count in method.allocation.counts(now, views).items():
            if count:
                prediction = selector.predict(Decision(views[name], count))
                arm = prediction.trusted
                changes.append(prediction.loss_change_nats[arm])
                ends.append(prediction.loss_change_interval[arm])
                removals.append((groups.prunable[name], prediction.proposals[arm]))
        groups = shrink_all(groups, removals)
        kept = groups.costs.total("macs") / stage.start.total("macs")
        gone = {group.name: channels for group, channels in removals}
        loss_now = survey.base_loss + sum(changes)
        views = {
            name: _after(views[name], gone.get(name, ()), kept, loss_now)
            for name in groups.prunable
        }
    return expect(changes, ends, survey.base_loss, _logits(model, survey), rounds=rounds)


def _after(view: GroupView, gone: Sequence[int], macs_kept: float, loss: float) -> GroupView:
    """The same group when channels are gone, the network is smaller and its loss higher."""
    before = view.context
    scale = before.relative_loss / before.base_loss if before.base_loss else 0.0
    return GroupView(
        facts=view.facts,
        context=replace(before, macs_kept=macs_kept, base_loss=loss, relative_loss=loss * scale),
        scores={name: np.delete(values, list(gone)) for name, values in view.scores.items()},
        pairs={mode: found.without(gone) for mode, found in view.pairs.items()},
    )


def highest_predicted(plan: Plan) -> float | None:
    """The ends of the groups' predicted intervals, summed; None where nothing was predicted."""
    ends = [choice.predicted_interval for choice in plan.choices]
    return None if None in ends else sum(end[1] for end in ends if end is not None)
