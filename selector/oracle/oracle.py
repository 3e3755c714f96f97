"""The true loss change of removing channel sets: the ground truth of labels and of verification.

Candidates loop inside the data loop, so that only one batch is held; every batch sees all of them,
and differences to the whole network are paired image by image.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import nn

from selector.data.batches import Batches, check_repeatable
from selector.data.checks import check_kind, check_model
from selector.data.exclusive import one_at_a_time
from selector.data.forward import evaluating, probe_inputs, read
from selector.data.loss import Loss, LossChange, Objective
from selector.data.own_forward import Forward
from selector.errors import SelectorError
from selector.network.batchnorm import batch_statistics, has_batch_statistics
from selector.network.compensation import Means, find_absorbers, measure_means, shifts_of
from selector.network.copying import uncompiled
from selector.network.folding import Prediction
from selector.network.groups import Group, find_group
from selector.network.tracing import find_groups
from selector.oracle.engines import EngineName, make_engine
from selector.oracle.masked_engine import Removal
from selector.oracle.racing import Race
from selector.oracle.recalibrated import recalibrated_changes
from selector.oracle.runner import Reading, Runner, UnitChangedError
from selector.typing import Channels, ChannelSet, Mode

MEMORY_BYTES = 2**31
"""What the fast engine may keep of a batch by default."""


@dataclass(frozen=True)
class Measured:
    """Loss changes, and what they cost."""

    changes: Mapping[Group, list[LossChange]]
    """In the order asked."""
    image_forwards: int
    """Images times networks evaluated, the whole network included."""
    image_forwards_saved: int
    """What early stopping did without."""
    divergences: Mapping[Group, list[LossChange]] = field(default_factory=dict)
    """How much further the outputs are from the reference network's, where one was given: nats
    times the square of the temperature for logits, shares of the variance for others."""


class OracleError(SelectorError):
    """The oracle had to stop; `measured` holds what it had found by then."""

    measured: Mapping[Group, list[LossChange | None]]


@dataclass(frozen=True)
class Oracle:
    """How loss changes are measured."""

    mode: Mode = "plain"
    """`plain`: a removed channel is gone; `compensated`: it is replaced by its mean, which the
    consumers' biases, or the BatchNorm behind them, absorb; `repaired`: by what the channels that
    stay predict, which the consumers' weights absorb."""
    means: Means | None = None
    """Mean inputs of the consumers, for the mode `compensated`; see `measure_means`."""
    prediction: Prediction | None = None
    """How channels predict each other, for the mode `repaired`; see `Prediction.measured`."""
    batch_statistics: bool = False
    """Read losses with every batch's own BatchNorm statistics, as recalibration and repair leave
    them; not where a batch has fewer than `LEAST_BATCH` images."""
    engine: EngineName = "fast"
    """`fast` computes again only what depends on the channels, `masked` runs the whole network,
    `reference` cuts the channels out physically: one answer."""
    stop: float | None = None
    """Stop measuring a candidate once it is this many standard errors worse than the best of those
    with as many channels of its group; None measures all to the end."""
    memory_bytes: int = MEMORY_BYTES
    """What the fast engine may keep; larger batches are read in parts."""
    check: bool = True
    """Make sure that the network gives the same outputs twice and that its trace holds. Off only in
    loops that have done so for this network; a group that is new to the engine is tried even so."""

    def __post_init__(self) -> None:
        """Refuse options that have no meaning."""
        if self.mode not in get_args(Mode):
            known = ", ".join(get_args(Mode))
            raise SelectorError(f"unknown mode {self.mode!r}; known: {known}")
        if self.engine not in ("fast", "masked", "reference"):
            raise SelectorError(f"unknown engine {self.engine!r}; known: fast, masked, reference")
        if (self.mode == "compensated") != (self.means is not None):
            raise SelectorError(
                "means belong to mode='compensated', and that mode needs them; see measure_means"
            )
        if (self.mode == "repaired") != (self.prediction is not None):
            raise SelectorError(
                "prediction belongs to mode='repaired', and that mode needs it; see "
                "Prediction.measured"
            )
        if self.stop is not None and not self.stop > 0:
            raise SelectorError(f"stop={self.stop} must be a number of standard errors above zero")
        if self.memory_bytes < 1:
            raise SelectorError(f"memory_bytes={self.memory_bytes} must be above zero")

    def measure(
        self,
        model: nn.Module,
        batches: Batches,
        candidates: Mapping[Group, Sequence[ChannelSet]],
        *,
        loss: Loss | None = None,
        reference: nn.Module | None = None,
        progress: bool = False,
    ) -> Measured:
        """Measure what each channel set does to the loss, over one reading of the data.

        Args:
            model: The network; left exactly as found.
            batches: Re-iterable of (inputs, targets), the same images on every reading.
            candidates: Group -> channel sets; equal sets are measured once.
            loss: Mean loss of a batch; cross-entropy by default.
            reference: The unpruned network, whose softened outputs the divergences are from.
            progress: Show a progress bar.

        Raises:
            SelectorError: A channel out of range, repeated, or all of them; batches that change
                between readings.
            OracleError: A network that gives other outputs for the same images, or a loss that is
                not finite; `measured` holds what was found before.
        """
        check_repeatable(batches)
        sets = {group: [group.checked(s) for s in asked] for group, asked in candidates.items()}
        distinct = {g: list(dict.fromkeys(s for s in asked if s)) for g, asked in sets.items()}
        model = uncompiled(model)
        race = Race(distinct, self.stop)
        by_batch = self.batch_statistics and has_batch_statistics(model, batches)
        with torch.no_grad(), ExitStack() as stack:
            for network in (model, reference):
                if network is not None:
                    stack.enter_context(evaluating(network))
            removals = self._removals(model, batches, distinct, by_batch=by_batch)
            if by_batch:
                stack.enter_context(batch_statistics(model))
            runner = Runner(
                model,
                make_engine(model, self.engine, check=self.check, alone=by_batch),
                Objective(loss),
                race,
                removals,
                reading=Reading(
                    self.memory_bytes, self.check, progress, whole=by_batch, reference=reference
                ),
            )
            try:
                _read_through(model, batches, runner)
            except SelectorError as error:
                raise _interrupted(error, sets, runner) from error
        if runner.images < 2:
            raise SelectorError("one image has no standard error; pass at least two to the oracle")
        changes = {group: [runner.change(group, s) for s in asked] for group, asked in sets.items()}
        saved = runner.images * (1 + race.count) - runner.image_forwards
        divergences = {
            group: [runner.divergence(group, s) for s in asked]
            for group, asked in sets.items()
            if reference is not None
        }
        return Measured(changes, runner.image_forwards, saved, divergences)

    def _removals(
        self,
        model: nn.Module,
        batches: Batches,
        candidates: Mapping[Group, Sequence[Channels]],
        *,
        by_batch: bool,
    ) -> dict[tuple[Group, Channels], Removal]:
        """What stands for every candidate; a BatchNorm that goes by batches takes up constants."""
        absorbers = {}
        if self.means is not None:
            absorbers = find_absorbers(model, probe_inputs(model, batches))

        def removal(group: Group, channels: Channels) -> Removal:
            if self.prediction is not None:
                folds, shifts = self.prediction.of(model, group, channels)
                if by_batch:
                    shifts = tuple(s for s in shifts if s.absorber == s.layer)
                return Removal(channels, shifts, folds)
            if self.means is not None:
                return Removal(channels, shifts_of(model, group, channels, self.means, absorbers))
            return Removal(channels)

        return {
            (g, channels): removal(g, channels)
            for g, sets in candidates.items()
            for channels in sets
        }


def _read_through(model: nn.Module, batches: Batches, runner: Runner) -> None:
    """Measure on all batches; again from the first where a batch shows that it is the unit."""
    while True:
        try:
            for number, (inputs, targets) in enumerate(read(model, batches)):
                runner.measure_batch(inputs, targets, number)
            return
        except UnitChangedError:
            runner.start_over()


def _interrupted(
    error: SelectorError, sets: Mapping[Group, Sequence[Channels]], runner: Runner
) -> OracleError:
    found: dict[Group, list[LossChange | None]] = {
        group: [runner.change_so_far(group, channels) for channels in asked]
        for group, asked in sets.items()
    }
    images = runner.images
    stopped = OracleError(f"{error} ({images} images had been measured)" if images else str(error))
    stopped.measured = found
    return stopped


def _check_sets(channel_sets: object) -> None:
    """Make sure that channel sets are sequences of channels."""
    if isinstance(channel_sets, str) or not isinstance(channel_sets, Iterable):
        raise SelectorError(
            f"channel_sets={channel_sets!r} must be a list of channel sets, as in [[0], [1, 2]]"
        )
    for one in channel_sets:
        if isinstance(one, str) or not isinstance(one, Iterable):
            raise SelectorError(
                f"channel_sets holds {one!r}, and each must be a sequence of channels: pass "
                "[[0, 1]] for one set of two channels, [[0], [1]] for two sets of one"
            )


@one_at_a_time
def loss_changes(
    model: nn.Module,
    batches: Batches,
    group: Group | str,
    channel_sets: Sequence[ChannelSet],
    *,
    loss: Loss | None = None,
    forward: Forward | None = None,
    mode: Mode | Literal["recalibrated"] = "plain",
    calibration: Batches | None = None,
    engine: EngineName = "fast",
) -> list[LossChange]:
    """Measure what removing each of some channel sets of one group does to the loss.

    Equal sets are measured once. Each batch is read once and sees all the candidates.

    Args:
        model: The network; left exactly as found.
        batches: Re-iterable of (inputs, targets) that gives the same images on every reading.
        group: A group of `find_groups`, or its name.
        channel_sets: Channels to remove, one sequence for each candidate.
        loss: Mean loss of a batch; cross-entropy by default.
        forward: Runs the network on a batch; see `prune`.
        mode: `plain` removes the channels; `compensated` puts their means in their place;
            `repaired` puts in their place what the channels that stay predict, and reads losses
            with every batch's own BatchNorm statistics; `recalibrated` estimates the BatchNorm
            statistics again after each removal (slow).
        calibration: Images for means, predictions or statistics; `batches` by default.
        engine: `fast`, `masked` or `reference`; they give the same numbers.

    Returns:
        One `LossChange` for each channel set, in the order asked.

    Raises:
        SelectorError: Unknown group; a channel out of range, repeated, or all of them; batches
            that change between readings; a network that is not deterministic; a loss that is not
            finite (an `OracleError` then holds what was measured before).
    """
    check_model(model)
    _check_sets(channel_sets)
    model = uncompiled(model)
    if not isinstance(group, Group):
        check_kind("group", group, str, "pass the name of a group of find_groups")
        found = find_groups(model, probe_inputs(model, batches)).required()
        group = find_group(found, group)
    if mode == "recalibrated":
        return recalibrated_changes(
            model, batches, group, channel_sets, calibration=calibration or batches, loss=loss
        )
    means = prediction = None
    if mode == "compensated":
        means = measure_means(model, calibration or batches, [group])
    if mode == "repaired":
        prediction = Prediction.measured(model, calibration or batches, [group])
    oracle = Oracle(mode, means, prediction, mode == "repaired", engine)
    return oracle.measure(model, batches, {group: channel_sets}, loss=loss).changes[group]
