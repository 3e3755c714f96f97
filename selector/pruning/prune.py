"""`prune`: rounds of plan, cut and recalibrate on a copy, until the target is met."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from typing_extensions import Unpack

from selector.data.batches import Batches, check_batches
from selector.data.loss import Evaluation, Loss, evaluate
from selector.errors import SelectorError
from selector.learning.selector import SaliencySelector
from selector.network.surgery import Cut, cuts_of
from selector.planning.choose import first_stage
from selector.planning.composition.myopic import Myopic
from selector.planning.limits import Shares
from selector.planning.method import Allocation, Method, Verify
from selector.planning.plan import Plan
from selector.planning.target import Target, Targets
from selector.pruning.apply import FineTune
from selector.pruning.merge import combined
from selector.pruning.report import Report, report_of
from selector.pruning.rounds import Procedure, Walk, default_rounds


@dataclass(frozen=True, eq=False)
class PruneResult:
    """A smaller network, and how it came about."""

    model: nn.Module
    """The pruned copy; the caller's network is as it was."""
    plan: Plan
    """All rounds as one plan, in the channel numbers of the unpruned network."""
    rounds: tuple[Plan, ...]
    """The plan of each round, in the channel numbers that the network had then."""
    report: Report
    unpruned: nn.Module
    """The caller's network; `rebind` finds an optimizer's parameters by it."""
    cuts: tuple[Cut, ...]
    """What all rounds took from every layer, in the positions of the unpruned network."""


class PruningError(SelectorError):
    """Pruning had to stop in some round; `result` holds the network as it was before that."""

    result: PruneResult


def prune(
    model: nn.Module,
    batches: Batches,
    *,
    criterion: str = "selector",
    rounds: int | None = None,
    verify: Verify = 0,
    recalibrate: bool = True,
    compensate: bool = False,
    finetune: FineTune | None = None,
    selector: SaliencySelector | None = None,
    loss: Loss | None = None,
    max_loss_change: float | None = None,
    ignore: Iterable[str] = (),
    allocation: Allocation = "auto",
    myopic: Myopic | None = None,
    max_ratio: float = 0.9,
    max_ratios: Shares | None = None,
    ratios: Shares | None = None,
    round_to: int = 1,
    min_channels: int = 1,
    latency_inputs: object | None = None,
    test_batches: Batches | None = None,
    progress: bool = False,
    **target: Unpack[Targets],
) -> PruneResult:
    """Remove channels physically until the target is met, every group by the metric to trust there.

    In each round the network is scored, every group is routed to its metric, the channels are cut
    out, and BatchNorm's running statistics are estimated anew. Before the first cut, the expected
    damage is logged, and kept in the report.

    Args:
        model: A trained network; a copy is pruned.
        batches: Re-iterable of (inputs, targets), for scores, recalibration and verification; see
            `choose`.
        criterion: `selector`, a metric's name, or `oracle` (every arm's candidate is measured).
        rounds: Number of cuts; scores and routes are made anew before each. By default so many that
            each takes about a tenth of what is left (7 for `keep_macs=0.5`, 12 for 0.3). A round
            costs a forward and backward pass over the batches, and a forward pass each for
            recalibration, compensation, and the loss of what is left. Where that has risen above
            the selector's predicted interval, the round is taken back and its step halved, twice at
            most: so there may be more rounds.
        verify: How many of the selector's candidates are tried in every round, or `all`, as in
            `choose`; measured as recalibration will leave them if batches have 16 images or more.
        recalibrate: Estimate BatchNorm's running statistics anew after every cut.
        compensate: Keep the removed channels' means, measured in every round, as constants in the
            biases or BatchNorm layers of their consumers.
        finetune: Called with the pruned model and the number of the round after each; it may
            change values, not shapes.
        selector: Asked by criterion `selector` alone; the shipped one by default.
        loss: Mean loss of a batch; cross-entropy by default.
        max_loss_change: Stop before the loss on `batches`, right after a cut and before
            fine-tuning, exceeds that of the unpruned network by more than this, in nats; smaller
            steps are tried first. What was reached is returned, and the report says so.
        ignore: Groups to leave alone, by name; a producer's name takes its whole group.
        allocation: `even`, `damage` or `myopic`, as `choose` says; by default `damage` for a budget
            that the selector spends, else `even`. `myopic` is exactly that of arXiv 2004.03376 with
            `rounds=1`, its default then, and `recalibrate=False`.
        myopic: How that goes about it; as in the paper by default.
        max_ratio: Largest share of a group's channels that may go, in (0, 1).
        max_ratios: The same for single groups, by name.
        ratios: Share of the channels that single groups lose, by name, whatever the target asks of
            the others; without a target, the others lose nothing.
        round_to: Widths that are left are multiples of this, the nearest to what is asked.
        min_channels: Channels of a layer that are left at least.
        latency_inputs: For `keep_latency`, what the network is called with where latency matters,
            one image for example; by default eight images of the first batch. Layers are timed once
            at a few widths, the whole network between rounds; up to three rounds are added where it
            is still too slow.
        test_batches: Images for the losses and accuracies of the report; `batches` by default.
        progress: Show progress bars.
        **target: One of `keep_macs`, `keep_params`, `keep_weights`, `keep_latency` or `ratio`; see
            `choose`.

    Raises:
        SelectorError: Unusable input, unknown names, or a target that cannot be met. The caller's
            network is untouched in every case.
        PruningError: A round failed: a loss that is no number any more, a cut that does not do what
            masking promised, a fine-tuning that changed shapes. The round is taken back, and
            `result` holds what had been reached before it.
    """
    wanted = Target.of(target, ratios)
    how = Method(criterion, verify, selector, allocation, myopic, compensate, recalibrate)
    method = how.ready(wanted)
    _check_numbers(rounds, max_loss_change)
    check_batches(batches)
    before = evaluate(model, batches if test_batches is None else test_batches, loss)
    first = first_stage(
        model,
        batches,
        wanted,
        ignore=ignore,
        max_ratio=max_ratio,
        max_ratios=max_ratios,
        ratios=ratios,
        round_to=round_to,
        min_channels=min_channels,
        latency_inputs=latency_inputs,
    )
    judge = Judge(model, batches, test_batches, loss, before)
    procedure = Procedure(
        method=method,
        first=first,
        batches=batches,
        recalibrate=recalibrate,
        finetune=finetune,
        loss=loss,
        max_loss_change=max_loss_change,
        base_loss=judge.base_loss(needed=max_loss_change is not None),
        progress=progress,
    )
    if rounds is None:
        rounds = 1 if allocation == "myopic" else default_rounds(wanted, first.widths)
    walk = Walk(copy.deepcopy(model), procedure, rounds)
    try:
        walk.finish()
    except SelectorError as error:
        if not walk.cut:
            raise
        raise _with_result(error, walk, judge) from error
    return judge.result(walk)


def _check_numbers(rounds: int | None, max_loss_change: float | None) -> None:
    if rounds is not None and (not isinstance(rounds, int) or rounds < 1):
        raise SelectorError(f"rounds={rounds!r} must be a whole number, 1 or more")
    if max_loss_change is not None and not max_loss_change > 0:
        raise SelectorError(f"max_loss_change={max_loss_change!r} must be above 0, in nats")


@dataclass(frozen=True, eq=False)
class Judge:
    """What the result is compared with, and on which images."""

    model: nn.Module
    batches: Batches
    test_batches: Batches | None
    loss: Loss | None
    before: Evaluation

    def base_loss(self, *, needed: bool) -> float | None:
        """Loss of the unpruned network on the calibration images; None where it has none."""
        if self.test_batches is None:
            return self.before.loss
        try:
            return evaluate(self.model, self.batches, self.loss).loss
        except SelectorError:
            # Metrics of weights alone need no targets; what is wrong otherwise, scoring will say.
            if needed:
                raise
            return None

    def result(self, walk: Walk) -> PruneResult:
        """What has been reached, with its report."""
        judged_on = self.batches if self.test_batches is None else self.test_batches
        after = evaluate(walk.model, judged_on, self.loss) if walk.plans else self.before
        whole = combined(walk)
        on = "calibration images" if self.test_batches is None else "test images"
        cuts = cuts_of((walk.start.prunable[name], gone) for name, gone in whole.removals.items())
        report = report_of(walk.plans, whole, self.before, after, on, walk.timed)
        return PruneResult(walk.model, whole, tuple(walk.plans), report, self.model, cuts)


def _with_result(error: SelectorError, walk: Walk, judge: Judge) -> SelectorError:
    try:
        result = judge.result(walk)
    except SelectorError:
        return error
    stopped = PruningError(
        f"round {len(walk.plans) + 1} was taken back: {error}; what had been reached before it is "
        "this error's result"
    )
    stopped.result = result
    return stopped
