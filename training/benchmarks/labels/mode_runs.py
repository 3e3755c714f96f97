"""How every way of measuring a removal ranks candidates, beside what a whole repair leaves.

One run is a network in one state: in some groups and at some shares, every arm's candidate is
measured in every way; then it is cut, the whole network is repaired, and the loss, the divergence
and the accuracy are read on test images. Or one run is a network pruned to half its MACs by an
oracle that chooses every group's arm by one way of measuring.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from selector.network.compensation import measure_means
from selector.network.copying import copy_of
from selector.network.folding import Prediction
from selector.network.groups import Group
from selector.network.surgery import Cut, apply_cuts, cuts_of
from selector.oracle.oracle import Measured, Oracle
from selector.oracle.runner import TEMPERATURE
from selector.repair.correspondence import kept_after_cuts
from selector.repair.distillation.divergence import Divergence
from selector.repair.reconstruction import reconstruct
from selector.typing import Channels
from training.benchmarks.labels.mode_cases import (
    NETWORKS,
    Proposer,
    State,
    calibration_of,
    even_counts,
    measuring_of,
    original_of,
    spread,
    state_of,
    tests_of,
)
from training.reporting.accuracy import Images, accuracy, quick
from training.reporting.run_file import Key

VERSION = 1
"""Changes when measuring or repair does, so that earlier runs are not taken for new ones."""
MODES = ("plain", "compensated", "batch statistics", "repaired")
READINGS = ("loss", "divergence")
GROUPS = 2
SHARES = (0.25, 0.5, 0.75)
KEEP_MACS = 0.5
TRUTHS = ("loss", "divergence", "accuracy")


@dataclass(frozen=True)
class DecisionRow:
    """One group and one number of channels: every distinct candidate, measured in every way."""

    group: str
    share: float
    arms: list[list[str]]
    """Of each candidate, the arms that propose it."""
    measured: dict[str, list[float]]
    """`MODE, READING` -> nats of each candidate."""
    errors: dict[str, list[float]]
    """Their standard errors."""
    truth: dict[str, list[float]]
    """Of `TRUTHS` -> value of each candidate after cut and repair, on test images."""


@dataclass(frozen=True)
class ModeRun:
    """One finished run, as the file holds it."""

    network: str
    what: str
    """`unpruned` or `pruned`, the state of the decisions; or `routed by MODE`."""
    version: int
    normalised: bool
    """Whether the network has BatchNorm."""
    decisions: list[DecisionRow] = field(default_factory=list)
    routed: dict[str, float] = field(default_factory=dict)
    """Reading, or arm, that chooses for every group -> accuracy after cut and repair."""

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.network, self.what, self.version

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "ModeRun":
        """Read a line of the file."""
        rows = [DecisionRow(**row) for row in fields["decisions"]]
        return cls(**{**fields, "decisions": rows})


def every_run() -> list[tuple[str, str]]:
    """Network and what is done, network after network: the states, then the routed ones."""
    what = ("unpruned", "pruned", *(f"routed by {mode}" for mode in (*MODES, "one arm")))
    return [(name, one) for name in NETWORKS for one in what]


def run_one(network: str, what: str) -> ModeRun:
    """Make one run."""
    normalised = any(isinstance(m, nn.BatchNorm2d) for m in original_of(network).modules())
    if what.startswith("routed by "):
        found = _routed(network, what.removeprefix("routed by "))
        return ModeRun(network, what, VERSION, normalised, routed=found)
    return ModeRun(network, what, VERSION, normalised, _decisions(network, what == "pruned"))


def _oracles(model: nn.Module, images: Images, groups: Sequence[Group]) -> dict[str, Oracle]:
    prediction = Prediction.measured(model, images, groups)
    return {
        "plain": Oracle(),
        "compensated": Oracle("compensated", measure_means(model, images, groups)),
        "batch statistics": Oracle(batch_statistics=True),
        "repaired": Oracle("repaired", prediction=prediction, batch_statistics=True),
    }


def _decisions(network: str, pruned: bool) -> list[DecisionRow]:
    state = state_of(network, pruned)
    images = calibration_of(network)
    proposer = Proposer(state.model, images, state.groups)
    chosen = [state.groups[name] for name in spread(list(state.groups), GROUPS)]
    oracles = _oracles(state.model, images, chosen)
    rows = []
    for group in chosen:
        for share in SHARES:
            count = min(group.channels - 1, max(1, round(share * group.channels)))
            sets: dict[Channels, list[str]] = {}
            for arm, channels in proposer.sets(group, count).items():
                sets.setdefault(channels, []).append(arm)
            rows.append(_decision(network, state, group, share, sets, oracles))
    return rows


def _decision(
    network: str,
    state: State,
    group: Group,
    share: float,
    sets: Mapping[Channels, list[str]],
    oracles: Mapping[str, Oracle],
) -> DecisionRow:
    measured, errors = {}, {}
    for mode, oracle in oracles.items():
        found = oracle.measure(
            state.model, measuring_of(network), {group: list(sets)}, reference=state.original
        )
        for reading, changes in _readings(found, group).items():
            measured[f"{mode}, {reading}"] = [change.nats for change in changes]
            errors[f"{mode}, {reading}"] = [change.standard_error for change in changes]
    truths = [_after_repair(network, state, group, channels) for channels in sets]
    truth = {what: [one[what] for one in truths] for what in TRUTHS}
    return DecisionRow(group.name, share, list(sets.values()), measured, errors, truth)


def _readings(found: Measured, group: Group) -> dict[str, Any]:
    return {"loss": found.changes[group], "divergence": found.divergences[group]}


def _after_repair(network: str, state: State, group: Group, channels: Channels) -> dict[str, float]:
    """What cutting a group and repairing the whole network leaves, on test images."""
    smaller = copy_of(state.model)
    cuts = cuts_of([(group, channels)])
    apply_cuts(smaller, cuts)
    kept = dict(kept_after_cuts(state.original, state.cuts))
    for layer, left in kept_after_cuts(state.model, cuts).items():
        before = kept.get(layer)
        kept[layer] = left if before is None else tuple(before[i] for i in left)
    repaired = reconstruct(state.original, smaller, calibration_of(network), kept=kept).model
    return judged(network, repaired)


@torch.no_grad()
def judged(network: str, model: nn.Module) -> dict[str, float]:
    """Loss, divergence from the unpruned network, and accuracy, on the test images."""
    quickly, original = quick(model), quick(original_of(network))
    totals, images, divergence = dict.fromkeys(TRUTHS, 0.0), 0, None
    for inputs, labels in tests_of(network):
        outputs, theirs = quickly(inputs), original(inputs)
        divergence = divergence or Divergence.measured(theirs, TEMPERATURE)
        totals["loss"] += float(functional.cross_entropy(outputs, labels, reduction="sum"))
        totals["divergence"] += float(divergence.each(outputs, theirs).sum())
        totals["accuracy"] += float((outputs.argmax(1) == labels).sum())
        images += len(labels)
    return {what: total / images for what, total in totals.items()}


def _routed(network: str, mode: str) -> dict[str, float]:
    """Accuracy of the network with half its MACs, every group's arm chosen by one mode.

    Args:
        network: Its name.
        mode: One of `MODES`; or `one arm`, for every arm in all groups.
    """
    state, images = state_of(network, pruned=False), calibration_of(network)
    counts = even_counts(network, KEEP_MACS)
    groups = {name: state.groups[name] for name in counts}
    proposer = Proposer(state.model, images, groups)
    proposals = {group: proposer.sets(group, counts[name]) for name, group in groups.items()}
    routes: dict[str, dict[Group, Channels]] = {}
    if mode == "one arm":
        arms = list(next(iter(proposals.values())))
        routes = {arm: {g: sets[arm] for g, sets in proposals.items()} for arm in arms}
    else:
        oracle = _oracles(state.model, images, list(proposals))[mode]
        sets = {group: list(dict.fromkeys(some.values())) for group, some in proposals.items()}
        found = oracle.measure(state.model, measuring_of(network), sets, reference=state.original)
        for reading in READINGS:
            best = {}
            for group, some in sets.items():
                nats = [change.nats for change in _readings(found, group)[reading]]
                best[group] = some[nats.index(min(nats))]
            routes[reading] = best
    return {name: _cut_and_repaired(network, route) for name, route in routes.items()}


def _cut_and_repaired(network: str, route: Mapping[Group, Channels]) -> float:
    smaller = copy_of(original_of(network))
    cuts: tuple[Cut, ...] = cuts_of(list(route.items()))
    apply_cuts(smaller, cuts)
    found = reconstruct(original_of(network), smaller, calibration_of(network), kept=cuts)
    return accuracy(quick(found.model), tests_of(network))
