"""`prune`: rounds of plan, cut and recalibrate on a copy, until the target is met."""

import logging
import math
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from selector.data.batches import Batches
from selector.data.calibration import Calibration
from selector.data.checks import (
    check_function,
    check_kind,
    check_model,
    check_path,
    is_number,
    whole_number,
)
from selector.data.exclusive import one_at_a_time
from selector.data.fingerprint import fingerprint_of
from selector.data.loss import Loss
from selector.data.own_forward import Forward
from selector.data.units import BY_BATCH
from selector.errors import SelectorError
from selector.learning.selector import SaliencySelector
from selector.network.batchnorm import has_batchnorm
from selector.network.copying import uncompiled
from selector.planning.choose import first_stage
from selector.planning.composition.myopic import Myopic
from selector.planning.criteria import Verify
from selector.planning.limits import Limits, Shares
from selector.planning.method import AllocationName, method_of
from selector.planning.target import Target, Targets
from selector.pruning.apply import FineTune
from selector.pruning.callbacks import Callback, checked_callbacks
from selector.pruning.procedure import Procedure, default_rounds
from selector.pruning.repairing import RepairOption, when_to_repair
from selector.pruning.reporter import Reporter
from selector.pruning.result import PruneResult
from selector.pruning.resume import RoundStore
from selector.pruning.rounds import PruningRun
from selector.pruning.run_info import Clocked
from selector.repair.distillation.task import check_imitable

LOG = logging.getLogger("selector")


@one_at_a_time
def prune(
    model: nn.Module,
    batches: Batches,
    *,
    criterion: str = "selector",
    rounds: int | None = None,
    verify: Verify = 0,
    recalibrate: bool = True,
    repair: RepairOption = "auto",
    distil: float | None = None,
    compensate: bool = False,
    finetune: FineTune | None = None,
    selector: SaliencySelector | None = None,
    loss: Loss | None = None,
    forward: Forward | None = None,
    max_loss_change: float | None = None,
    ignore: Iterable[str] = (),
    allocation: AllocationName = "auto",
    myopic: Myopic | None = None,
    max_ratio: float = 0.9,
    max_ratios: Shares | None = None,
    ratios: Shares | None = None,
    round_to: int = 1,
    min_channels: int = 1,
    latency_inputs: object | None = None,
    test_batches: Batches | None = None,
    checkpoint: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = False,
    **target: Unpack[Targets],
) -> PruneResult:
    """Remove channels physically until the target is met, every group by the metric to trust there.

    In each round the network is scored, every group is routed to its metric, the channels are cut
    out, and BatchNorm's running statistics are estimated again. Before the first cut, the expected
    damage is logged, and kept in the report.

    Passes over the data: one before the first round (two with a forecast, one more over
    `test_batches`); in every round one to score (forward and backward, with a second backward where
    a selector may trust proposals of sets and knows such networks; none for metrics of weights
    alone), one to recalibrate, one for the loss of what is left, one for the means with
    `compensate`, and where widths are measured one, and then 32 images a few times for every group;
    in every halved round the last two or three again. At the end two to repair, and one for the
    loss after it; without BatchNorm, and with `max_loss_change` or `finetune`, two to repair in
    every round instead, and in the last (in every one with `max_loss_change`) one for what repair
    is to make good.

    Args:
        model: A trained network; a copy is pruned.
        batches: Re-iterable of (inputs, targets), for scores, recalibration and verification; see
            `choose`.
        criterion: `selector`, the name of a metric or of a proposal of sets, or `oracle` (every
            arm's candidate is measured).
        rounds: Number of cuts; the network is scored and routed again before each. By default each
            takes about three tenths of what is left where the network is repaired (2 rounds for
            `keep_macs=0.5`, 4 for 0.3), else a tenth (7 and 12). Where the loss of what is left is
            above the selector's predicted interval, the round is undone and its step halved, at
            most twice: so there may be more rounds.
        verify: How many of the selector's candidates are tried in every round, or `all`, as in
            `choose`; measured as recalibration will leave them if batches have 16 images or more.
        recalibrate: Estimate BatchNorm's running statistics again after every cut.
        repair: Refit every layer that is left, in closed form and without labels, so that it gives
            what the unpruned network gives; see `selector.reconstruct`. `auto` does so unless
            `recalibrate` is off: once after the last round, or after every cut where the network
            has no BatchNorm to recalibrate, and where `finetune` or `max_loss_change` is given.
            Layers whose parameters take no gradient keep their weights. Where the network cannot be
            repaired, `auto` leaves it so and warns, and `True` stops with a `PruningError`.
        distil: Minutes in which the network is then trained, without labels, to give the unpruned
            network's outputs on `batches`; see `selector.distil`.
        compensate: Keep the removed channels' means, measured in every round, as constants in the
            biases or BatchNorm layers of their consumers.
        finetune: Called with the pruned model and the number of the round after each; it may
            change values, not shapes.
        selector: Asked by criterion `selector` alone; the shipped one by default.
        loss: Mean loss of a batch; cross-entropy by default.
        forward: Runs the network on a batch, as `forward(model, batch)`, and returns its outputs or
            its loss (a number, or several by name, which are added), where the network is not
            simply called with the inputs. Batches are then whatever it reads. It may switch to
            training mode, for losses that exist there alone: the mode comes back, BatchNorm keeps
            its statistics, and random numbers are the same in every call.
        max_loss_change: Stop before the loss on `batches`, after cut and repair and before
            fine-tuning, exceeds that of the unpruned network by more than this, in nats; smaller
            steps are tried first. What was reached is returned, and the report says so.
        ignore: Groups that are not pruned, by name; a producer's name stands for its whole group.
        allocation: `even`, `damage`, `measured` or `myopic`, as `choose` says; by default `damage`
            for a budget that the selector spends, or `measured` where it knows no such networks,
            else `even`. `myopic` is exactly that of arXiv 2004.03376 with `rounds=1`, its default
            then, and `recalibrate=False`.
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
        checkpoint: Folder that holds the state after every round: where a run was stopped, the same
            call goes on from the last whole round.
        callbacks: Called after every round that is kept, as `on_round_end(end)`; ready ones are
            `selector.CsvLog` and `selector.TensorBoardLog`.
        progress: Show a bar with the round, its step and the time left, and the forecast.
        **target: One of `keep_macs`, `keep_params`, `keep_weights`, `keep_latency` or `ratio`; see
            `choose`.

    Raises:
        SelectorError: Unusable input, unknown names, or a target that cannot be met. The caller's
            network is untouched in every case.
        PruningError: A round failed, whatever the reason: a loss that is not a number, a cut that
            does not do what masking promised, an exception of the caller's own loss, data or
            fine-tuning, memory, Ctrl-C. The round is undone, and `result` holds what had been
            reached before it.
    """
    clocked = Clocked.of(prune, locals())
    check_model(model)
    model = uncompiled(model)
    check_function("finetune", finetune, "finetune(model, round)")
    told = checked_callbacks(callbacks)
    wanted = Target.of(target, ratios)
    method = method_of(
        criterion,
        wanted,
        verify=verify,
        selector=selector,
        allocation=allocation,
        myopic=myopic,
        compensate=compensate,
        recalibrate=recalibrate,
    )
    for name, value in (("recalibrate", recalibrate), ("compensate", compensate)):
        check_kind(name, value, bool, "pass True or False")
    _check_numbers(rounds, max_loss_change, distil)
    check_path("checkpoint", checkpoint)
    limits = Limits.of(
        ignore=ignore,
        max_ratio=max_ratio,
        max_ratios=max_ratios,
        ratios=ratios,
        round_to=round_to,
        min_channels=min_channels,
    )
    limited = max_loss_change is not None
    when = when_to_repair(
        repair,
        recalibrate=recalibrate,
        normalised=has_batchnorm(model),
        finetuned=finetune is not None,
        limited=limited,
    )
    calibration = Calibration(batches, loss)
    if distil is not None:
        check_imitable(model, calibration.first)
    test = None if test_batches is None else Calibration(test_batches, loss)
    reporter = Reporter.of(model, calibration, test, needed=limited, clocked=clocked)
    first = first_stage(model, calibration, wanted, limits, latency_inputs)
    for text in reporter.warnings:
        if text != BY_BATCH:  # Which was logged on the batch that showed it.
            LOG.warning("%s", text)
    if rounds is None:
        repaired = when != "never"
        rounds = 1 if method.myopic else default_rounds(wanted, first.widths, repaired=repaired)
    store = None
    if checkpoint is not None:
        options = (
            *(method, method.recalibrate, method.myopic, *method.digests),
            *(wanted, first.widths, rounds, max_loss_change, when, distil),
            *(version("saliency-selector"), torch.__version__),
        )
        store = RoundStore(checkpoint, fingerprint_of(model, [calibration], *options))
    procedure = Procedure(
        method=method,
        rounds=rounds,
        finetune=finetune,
        max_loss_change=max_loss_change,
        base_loss=None if reporter.base is None else reporter.base.loss,
        callbacks=told,
        progress=progress,
        store=store,
        repair=when,
        repair_required=repair is True,
        distil=distil,
        judged_on=reporter.judged_on,
    )
    run = PruningRun(model, calibration, first, procedure)
    try:
        run.finish()
    except BaseException as error:
        if not run.begun or (isinstance(error, SelectorError) and not run.cut):
            raise
        raise reporter.stopped(run, error) from error
    return reporter.result(run)


def _check_numbers(rounds: int | None, max_loss_change: float | None, distil: float | None) -> None:
    if rounds is not None:
        whole_number("rounds", rounds, 1)
    if max_loss_change is not None and not (
        is_number(max_loss_change) and 0 < max_loss_change < math.inf
    ):
        raise SelectorError(f"max_loss_change={max_loss_change!r} must be above 0, in nats")
    if distil is not None and not (is_number(distil) and 0 < distil < math.inf):
        raise SelectorError(f"distil={distil!r} must be a number of minutes, above 0")
