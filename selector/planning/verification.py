"""Verification: the oracle tries the next candidates where most is at stake, or decides alone."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from itertools import accumulate

from torch import Tensor, nn
from tqdm import tqdm

from selector.data.batches import batch_size
from selector.data.forward import evaluating
from selector.data.loss import Loss, LossChange, Objective, image_losses, summary
from selector.network.batchnorm import batch_statistics
from selector.network.compensation import removed
from selector.network.groups import Group
from selector.network.layers import NORMALISATION
from selector.oracle.oracle import Oracle
from selector.planning.candidates import Survey
from selector.planning.choice import Choice
from selector.planning.method import Method

Options = Mapping[Group, Sequence[Choice]]
"""Groups that lose channels -> their candidates, the most promising first."""

AT_STAKE = 0.5
"""Groups are verified, the dearest first, until they make up this share of the predicted damage."""

LEAST_BATCH = 16
"""Fewer images do not have the statistics that BatchNorm will have after recalibration."""


class Referee:
    """Tries candidates in a whole plan, and keeps those that make the loss of all of it lower."""

    def __init__(self, model: nn.Module, survey: Survey, method: Method, loss: Loss | None) -> None:
        """Measure nothing yet.

        Args:
            model: The network.
            survey: The images that measure, and the means that compensate.
            method: How many candidates are tried, and whether BatchNorm is recalibrated after the
                cut: then losses are measured as that will leave them.
            loss: Mean loss of a batch; cross-entropy by default.
        """
        self._model, self._survey, self._objective = model, survey, Objective(loss)
        self._method = method
        self._now: Tensor | None = None
        self.images = 0
        """Images times networks evaluated so far."""

    def best(self, options: Options, *, progress: bool = False) -> list[Choice]:
        """A choice for every group: the selector's first, or one that makes the plan's loss lower.

        The plan of all first choices is measured; then, in the groups where most of the damage is
        predicted (with `all` in every group), the next candidates in their place, given all else
        that the plan takes by then.

        Args:
            options: The candidates.
            progress: Show a progress bar.
        """
        chosen = {group: some[0] for group, some in options.items()}
        verify = self._method.verify
        if verify == 1:
            return list(chosen.values())
        count, share = (None, 1.0) if verify == "all" else (verify, AT_STAKE)
        now = self._losses(chosen)
        groups = dearest(options, share)
        for group in tqdm(groups, "verification", disable=not progress, leave=False):
            if others := options[group][1:count]:
                chosen[group], now = self._tried(chosen, group, others, now)
        self._now = now
        return list(chosen.values())

    def change(self, choices: Mapping[Group, Choice]) -> LossChange:
        """What all of a plan does to the loss; the best one's has been measured already."""
        before = self._losses({})
        after = self._losses(choices) if self._now is None else self._now
        return summary(after - before, len(after))

    @cached_property
    def _recalibrated(self) -> bool:
        """Whether BatchNorm goes by every batch's own statistics; asked when something is tried."""
        return (
            self._method.recalibrate
            and any(isinstance(layer, NORMALISATION) for layer in self._model.modules())
            and all(batch_size(inputs) >= LEAST_BATCH for inputs, _ in self._survey.measuring)
        )

    def _tried(
        self, chosen: Mapping[Group, Choice], group: Group, others: Sequence[Choice], now: Tensor
    ) -> tuple[Choice, Tensor]:
        """The best of a group's choice and some others; and the losses with it."""
        trusted = chosen[group]
        found = [(now, trusted)]
        found += [(self._losses({**chosen, group: other}), other) for other in others]
        # Sorting is stable: of equals the trusted one stays.
        (losses, best), (_, second), *_ = sorted(found, key=lambda one: float(one[0].mean()))
        best = replace(
            best,
            runner_up=second.metric,
            fell_back=best.fell_back and best is trusted,
            against_trusted=summary(losses - now, len(now)),
        )
        return best, losses

    def _losses(self, choices: Mapping[Group, Choice]) -> Tensor:
        """Loss of every image, shape (images,), without the channels of these choices."""
        gone = [(group, choice.remove) for group, choice in choices.items()]
        with ExitStack() as stack:
            stack.enter_context(evaluating(self._model))
            stack.enter_context(removed(self._model, gone, self._survey.compensation))
            if self._recalibrated:
                stack.enter_context(batch_statistics(self._model))
            losses, _ = image_losses(self._model, self._survey.measuring, self._objective)
        self.images += len(losses)
        return losses


def dearest(options: Options, share: float) -> list[Group]:
    """The groups that make up this share of the predicted damage, the dearest first."""
    nats = {group: max(0.0, some[0].predicted_nats or 0.0) for group, some in options.items()}
    order = sorted(nats, key=nats.__getitem__, reverse=True)
    if share >= 1:
        return order
    sums = accumulate(nats[group] for group in order)
    enough = share * sum(nats.values())
    return order[: 1 + sum(so_far < enough for so_far in sums)]


def composed(
    model: nn.Module, survey: Survey, options: Options, *, loss: Loss | None, progress: bool
) -> tuple[list[Choice], int]:
    """The best measured of every group's candidates; and the images evaluated.

    One group after the other: the next one's are measured in the network that this choice leaves.

    Args:
        model: The network.
        survey: The images that measure, and the means that compensate.
        options: The candidates.
        loss: Mean loss of a batch; cross-entropy by default.
        progress: Show a progress bar.
    """
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
                loss=loss,
                progress=progress,
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
