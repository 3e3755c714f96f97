"""What the proposals of sets say of a group, and the errors of any set: measured once a state."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import nn

from selector.data.calibration import Calibration
from selector.data.forward import evaluating, probe_inputs, run_batch
from selector.errors import SelectorError
from selector.network.groups import Group
from selector.saliency.proposals.registry import PROPOSALS, Orders, Proposal
from selector.saliency.proposals.set_errors import NEEDS, SetErrors
from selector.statistics.channel_statistics import Signals
from selector.statistics.collect import asked_with, measure_sources
from selector.statistics.gradient_source import Gradients, softened
from selector.statistics.statistic import Need, closure
from selector.typing import Channels, Matrix


def set_proposals(names: Iterable[str] | None = None) -> list[Proposal]:
    """The proposals of whole sets, those of some names or all, in the table's order."""
    wanted = None if names is None else set(names)
    every = [one for one in PROPOSALS.values() if one.kind == "set"]
    return [one for one in every if wanted is None or one.name in wanted]


@dataclass(frozen=True, eq=False)
class SharedOrders:
    """Orders in which proposals take a network's channels; groups of equal width go together."""

    groups: Mapping[str, Mapping[Gradients, Signals]]
    """Group -> source of the gradients -> what was measured."""
    _orders: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)

    def of(self, proposal: Proposal, group: str) -> tuple[int, ...]:
        """The channels of a group but for the last, in the order in which they go.

        Raises:
            SelectorError: The proposal gives no such order; it and the group are named.
        """
        if proposal.orders is not None and (proposal.name, group) not in self._orders:
            # Group after group, the one at fault is named.
            with suppress(SelectorError):
                self._make_alike(proposal, proposal.orders, group)
        if (proposal.name, group) not in self._orders:
            signals = self.groups[group][source_of(proposal)]
            found = proposal.ordered(group, signals, signals.channels - 1)
            self._orders[proposal.name, group] = found
        return self._orders[proposal.name, group]

    def _make_alike(self, proposal: Proposal, orders: Orders, group: str) -> None:
        """Make the orders of all groups as wide as this one."""
        source = source_of(proposal)
        every = {name: signals[source] for name, signals in self.groups.items()}
        alike = {n: one for n, one in every.items() if one.channels == every[group].channels}
        for name, order in zip(alike, orders(list(alike.values())), strict=True):
            self._orders[proposal.name, name] = tuple(order)


@dataclass(frozen=True, eq=False)
class MeasuredSets:
    """One group's sets: what is asked again and again is computed once.

    It is what `records/decision.py` calls the knowledge of a group's sets.
    """

    group: str
    signals: Mapping[Gradients, Signals]
    """Source of the gradients -> what was measured."""
    proposals: Sequence[Proposal]
    orders: SharedOrders | None = None
    """Those of all groups of the network; its own where there is none."""
    _sets: dict[tuple[str, int], Channels] = field(default_factory=dict)
    _errors: dict[Channels, Matrix] = field(default_factory=dict)

    def proposed(self, count: int) -> dict[str, Channels]:
        """Proposal -> the `count` channels that it would remove.

        Raises:
            SelectorError: A proposal that is no such set; it is named.
        """
        for one in self.proposals:
            if (one.name, count) not in self._sets:
                self._sets[one.name, count] = self._set(one, count)
        return {one.name: self._sets[one.name, count] for one in self.proposals}

    def _set(self, proposal: Proposal, count: int) -> Channels:
        signals = self.signals[source_of(proposal)]
        if not proposal.nested:
            return proposal.checked(self.group, signals, count)
        return tuple(sorted(self._known_orders.of(proposal, self.group)[:count]))

    @cached_property
    def _known_orders(self) -> SharedOrders:
        return self.orders or SharedOrders({self.group: self.signals})

    @cached_property
    def _measured(self) -> SetErrors:
        return SetErrors.of(self.signals["softened"])

    def errors(self, proposals: Mapping[str, Channels]) -> Matrix:
        """The errors of some proposals' sets, shape (proposals, 3); see `set_errors.ERRORS`."""
        sets = list(proposals.values())
        new = list(dict.fromkeys(s for s in sets if s not in self._errors))
        if new:
            self._errors.update(zip(new, self._measured.of_sets(new), strict=True))
        return np.array([self._errors[s] for s in sets])


def source_of(proposal: Proposal) -> Gradients:
    """The pass that serves a proposal: the softened one where it reads no gradient."""
    return proposal.gradients if "backward" in closure(proposal.needs) else "softened"


def needs_of_sets(
    model: nn.Module, calibration: Calibration, proposals: Sequence[Proposal]
) -> dict[Gradients, frozenset[Need]]:
    """What must be measured so that proposals can be asked and any set priced, for each source.

    Gradients of the softened outputs, and those of the loss where a proposal reads them. Where the
    loss is the caller's own, or outputs are no logits, there is nothing to soften: gradients of the
    loss stand for all.

    Raises:
        SelectorError: The network does not run on the images.
    """
    softens = calibration.loss is None and gives_logits(model, calibration)
    label_free: Gradients = "softened" if softens else "labels"
    needs: dict[Gradients, frozenset[Need]] = {label_free: frozenset(NEEDS)}
    for one in proposals:
        source = label_free if source_of(one) == "softened" else "labels"
        needs[source] = needs.get(source, frozenset()) | one.needs
    return needs


def measure_sets(
    model: nn.Module,
    calibration: Calibration,
    groups: Mapping[str, Group],
    proposals: Sequence[Proposal],
    *,
    seed: int = 0,
) -> dict[str, MeasuredSets]:
    """What some proposals say of every group, and what any set costs: from one forward pass.

    Args:
        model: The network; left as found.
        calibration: The images.
        groups: Its groups.
        proposals: Those that are asked.
        seed: Of the labels that softened outputs draw.

    Raises:
        SelectorError: As `measure_signals`.
    """
    needs = needs_of_sets(model, calibration, proposals)
    measured = measure_sources(
        model, calibration, groups, asked_with(needs, seed), loss=calibration.loss
    )
    return known_sets(measured, proposals)


def known_sets(
    measured: Mapping[Gradients, Mapping[str, Signals]], proposals: Sequence[Proposal]
) -> dict[str, MeasuredSets]:
    """What is known of the sets of groups that were measured.

    Args:
        measured: Source -> group -> signals; those of the loss stand for softened ones that are
            not there.
        proposals: Those that are asked.
    """
    sources = {"softened": measured.get("softened", measured.get("labels", {})), **measured}
    by_group: dict[str, dict[Gradients, Signals]] = {
        name: {source: of_groups[name] for source, of_groups in sources.items()}
        for name in sources["softened"]
    }
    orders = SharedOrders(by_group)
    return {name: MeasuredSets(name, own, proposals, orders) for name, own in by_group.items()}


def gives_logits(model: nn.Module, calibration: Calibration) -> bool:
    """Whether a network's output is one tensor of logits, which can be softened."""
    with torch.no_grad(), evaluating(model):
        outputs = run_batch(model, probe_inputs(model, calibration), 0)
    try:
        softened(outputs)
    except SelectorError:
        return False
    return True
