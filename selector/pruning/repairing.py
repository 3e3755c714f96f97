"""Repair between and after rounds: which network is imitated, and what was cut from it since."""

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import nn

from selector.data.calibration import Calibration
from selector.errors import SelectorError
from selector.network.copying import copy_of
from selector.network.tracing import Groups
from selector.planning.plan import Plan
from selector.pruning.merge import combined
from selector.repair.reconstruction import reconstruct_in_place
from selector.repair.report import RepairReport

RepairOption = Literal["auto"] | bool
When = Literal["never", "rounds", "end"]

LOG = logging.getLogger("selector")

NOT_REPAIRED = "the network was pruned and not repaired: {}"
ALL_SKIPPED = "the repair changed no layer, for every one is skipped: {}"


def when_to_repair(
    repair: RepairOption,
    *,
    recalibrate: bool,
    normalised: bool,
    finetuned: bool,
    limited: bool = False,
) -> When:
    """When a pruning repairs.

    Once at the end, which costs one walk. After every round where no BatchNorm is recalibrated in
    between, since the next round would be planned on a network that no longer works; where the
    caller fine-tunes, so that each fine-tuning starts from the repaired network; and where the loss
    has a limit, so that what is compared with the limit is the loss that is left.

    Args:
        repair: The caller's wish; `auto` repairs unless `recalibrate` is off.
        recalibrate: Whether BatchNorm is recalibrated after a cut.
        normalised: Whether the network has BatchNorm.
        finetuned: Whether the caller fine-tunes between rounds.
        limited: Whether the loss may not rise beyond a limit.

    Raises:
        SelectorError: `repair` is neither a truth value nor `auto`.
    """
    if repair not in (True, False, "auto") or isinstance(repair, int) != isinstance(repair, bool):
        raise SelectorError(f"repair={repair!r} must be True, False or 'auto'")
    if repair is False or (repair == "auto" and not recalibrate):
        return "never"
    works_between = recalibrate and normalised
    return "rounds" if finetuned or limited or not works_between else "end"


class Repaired(NamedTuple):
    """What came of a repair."""

    model: nn.Module
    """The repaired copy, or the network itself where repair is impossible and not required."""
    report: RepairReport | None
    """What was done to every layer."""
    failed: str | None
    """Why it was impossible."""


class Repairer:
    """Repairs a network towards the one that it was cut from.

    That is the unpruned network, or, where fine-tuning came between, the network after it.

    Args:
        target: The network to imitate; it stays as it is.
        groups: Its groups.
        required: Whether a repair that is impossible is an error, and not a warning.
    """

    def __init__(self, target: nn.Module, groups: Groups, *, required: bool = False) -> None:
        self._target, self._groups, self._rounds = target, groups, 0
        self._required = required

    def repair(self, model: nn.Module, plans: Sequence[Plan], calibration: Calibration) -> Repaired:
        """Refit a copy of a network.

        Args:
            model: What is left; it stays as it is.
            plans: Of all rounds that were cut from the unpruned network.
            calibration: The images; labels are not read.

        Raises:
            SelectorError: The repair is required, and impossible: activations that are not finite,
                or outputs that change between runs.
        """
        since = combined(plans[self._rounds :], self._groups, self._groups)
        repaired = copy_of(model)
        try:
            report = reconstruct_in_place(self._target, repaired, calibration, kept=since.cuts)
        except SelectorError as error:
            if self._required:
                raise
            LOG.warning("%s", NOT_REPAIRED.format(error))
            return Repaired(model, None, str(error))
        return Repaired(repaired, report, None)

    def imitate(self, model: nn.Module, groups: Groups, rounds: int) -> None:
        """From now on, repair towards this network.

        Args:
            model: As fine-tuning left it.
            groups: Its groups.
            rounds: Rounds that led to it.
        """
        self._target, self._groups, self._rounds = copy_of(model), groups, rounds


def repair_warnings(repaired: RepairReport | None, failed: str | None) -> tuple[str, ...]:
    """What the report warns of where a repair did nothing.

    Args:
        repaired: What the last repair did to every layer; None without one.
        failed: Why it was impossible.
    """
    if failed is not None:
        return (NOT_REPAIRED.format(failed),)
    if repaired is None or len(repaired.skipped) < len(repaired.layers):
        return ()
    reasons = dict.fromkeys(layer.note for layer in repaired.skipped)
    return (ALL_SKIPPED.format("; ".join(reasons)),)
