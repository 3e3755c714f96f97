"""Verification: the oracle tries the next candidates where most is at stake, or decides alone."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import Literal

from tqdm import tqdm

from selector.data.forward import evaluating
from selector.data.loss import LossChange, Losses, measure_losses
from selector.network.batchnorm import batch_statistics, has_batch_statistics
from selector.network.compensation import removed
from selector.network.groups import Group
from selector.oracle.oracle import Oracle
from selector.planning.candidates import Options, Trial
from selector.planning.choice import Choice

AT_STAKE = 0.5
"""Groups are verified, the most damaging first, up to this share of the predicted damage."""


class Verifier:
    """Tries candidates in a whole plan, and keeps those that make the loss of all of it lower.

    Args:
        trial: The network, and the images that measure. Where BatchNorm is recalibrated after the
            cut, losses are measured as that will leave them.
        verify: How many candidates are tried where most is at stake; `all` for every one.
    """

    def __init__(self, trial: Trial, verify: int | Literal["all"]) -> None:
        self._trial, self._verify = trial, verify
        self._now: Losses | None = None
        self.images = 0
        """Images times networks evaluated so far."""

    def best(self, options: Options) -> list[Choice]:
        """A choice for every group: the selector's first, or one that makes the plan's loss lower.

        The plan of all first choices is measured; then, in the groups where most of the damage is
        predicted (with `all` in every group), the next candidates in their place, given all else
        that the plan takes by then.

        Args:
            options: The candidates.
        """
        chosen = {group: some[0] for group, some in options.items()}
        verify = self._verify
        if verify == 1:
            return list(chosen.values())
        count, share = (None, 1.0) if verify == "all" else (verify, AT_STAKE)
        now = self._losses(chosen)
        groups = most_damaging(options, share)
        for group in tqdm(groups, "verification", disable=not self._trial.progress, leave=False):
            if others := options[group][1:count]:
                chosen[group], now = self._tried(chosen, group, others, now)
        self._now = now
        return list(chosen.values())

    def change(self, choices: Mapping[Group, Choice]) -> LossChange:
        """What all of a plan does to the loss; the best one's has been measured already."""
        before = self._losses({})
        after = self._losses(choices) if self._now is None else self._now
        return after.change_from(before)

    @cached_property
    def _recalibrated(self) -> bool:
        """Whether BatchNorm goes by every batch's own statistics; asked when something is tried."""
        trial = self._trial
        return trial.recalibrate and has_batch_statistics(trial.model, trial.survey.measuring)

    def _tried(
        self, chosen: Mapping[Group, Choice], group: Group, others: Sequence[Choice], now: Losses
    ) -> tuple[Choice, Losses]:
        """The best of a group's choice and some others; and the losses with it."""
        trusted = chosen[group]
        found = [(now, trusted)]
        found += [(self._losses({**chosen, group: other}), other) for other in others]
        # Sorting is stable: of equals the trusted one stays.
        (losses, best), (_, second), *_ = sorted(found, key=lambda one: one[0].mean())
        best = replace(
            best,
            runner_up=second.metric,
            fell_back=best.fell_back and best is trusted,
            against_trusted=losses.change_from(now),
        )
        return best, losses

    def _losses(self, choices: Mapping[Group, Choice]) -> Losses:
        """Losses without the channels of these choices."""
        gone = [(group, choice.remove) for group, choice in choices.items()]
        model, survey = self._trial.model, self._trial.survey
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            stack.enter_context(removed(model, gone, survey.compensation))
            if self._recalibrated:
                stack.enter_context(batch_statistics(model))
            losses = measure_losses(model, survey.measuring, survey.measuring.objective)
        self.images += losses.images
        return losses


def most_damaging(options: Options, share: float) -> list[Group]:
    """The groups that make up this share of the predicted damage, the most damaging first."""
    nats = {group: max(0.0, some[0].predicted_nats or 0.0) for group, some in options.items()}
    order = sorted(nats, key=nats.__getitem__, reverse=True)
    if share >= 1:
        return order
    sums = accumulate(nats[group] for group in order)
    enough = share * sum(nats.values())
    return order[: 1 + sum(so_far < enough for so_far in sums)]


def composed(trial: Trial, options: Options) -> tuple[list[Choice], int]:
    """The best measured of every group's candidates; and the images evaluated.

    One group after the other: the next one's are measured in the network that this choice leaves.
    """
    model, survey = trial.model, trial.survey
    oracle = Oracle()
    if survey.compensation is not None:
        oracle = Oracle("compensated", survey.compensation.means)
    choices, images = list[Choice](), 0
    with ExitStack() as already_gone:
        for group, some in options.items():
            found = oracle.measure(
                model,
                survey.measuring,
                {group: [option.remove for option in some]},
                loss=survey.measuring.loss,
                progress=trial.progress,
            )
            images += found.image_forwards
            changes = found.changes[group]
            order = sorted(range(len(some)), key=lambda number: changes[number].nats)
            second = some[order[1]].metric if len(some) > 1 else None
            first = order[0]
            choices.append(
                replace(some[first], measured=changes[first], fell_back=False, runner_up=second)
            )
            gone = removed(model, [(group, choices[-1].remove)], survey.compensation)
            already_gone.enter_context(gone)
    return choices, images
