"""One state of a network measured: what every arm would remove, and what that does to the loss."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from selector.data.calibration import Calibration
from selector.data.forward import probe_inputs
from selector.data.loss import LossChange
from selector.learning.features import candidates
from selector.network.batchnorm import has_batchnorm
from selector.network.compensation import Means, measure_means
from selector.network.groups import Group
from selector.network.tracing import find_groups
from selector.oracle.oracle import Oracle
from selector.oracle.recalibrated import recalibrated_changes
from selector.planning.description import describe_network
from selector.recording.contexts import counts_of, draw_counts
from selector.recording.repaired import RepairedRemoval
from selector.records.decision import SET_ERRORS, Decision
from selector.records.measurement import CandidateRecord, GroupRecord
from selector.saliency.proposals.knowledge import set_proposals
from selector.saliency.registry import METRICS, arms, first_order_metrics
from selector.typing import Channels, Matrix

BASELINES = ("rank_mean", "random")
"""Measured as well as the arms, to compare with."""
RECALIBRATED_SHARE = 0.1
"""Share of the decisions that are measured after recalibration, too."""


@dataclass(frozen=True)
class Parts:
    """Disjoint parts of the data: for scores, and two that measure."""

    signals: Calibration
    selection: Calibration
    evaluation: Calibration


class NetworkState:
    """A network in one state: its groups, scores and means, and the oracle on them.

    One pass over the part for scores, and one forward pass for the means.

    Args:
        model: The network in this state; left exactly as found.
        parts: The data.
        network: Name of the network in the records.
        context: Name of the state.
        whole_macs: Multiply-accumulates of the unpruned network.
        seed: Of what is drawn, and of the `random` metric.
        original: The unpruned network, where repaired removal is measured: then proposals of sets
            are candidates, too. None for plain removal.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Parts,
        network: str,
        context: str,
        whole_macs: float,
        seed: int,
        original: nn.Module | None = None,
    ) -> None:
        self._model, self._parts, self._seed = model, parts, seed
        self.groups = find_groups(model, probe_inputs(model, parts.signals))
        prunable = self.groups.prunable
        views = describe_network(
            model,
            self.groups,
            parts.signals,
            [METRICS[name] for name in first_order_metrics()],
            () if original is None else set_proposals(),
            macs_kept=self.groups.costs.total("macs") / whole_macs,
            seed=seed,
        )
        self._repaired: RepairedRemoval | None = None
        self._means: Means = {}
        if original is None:
            self._means = measure_means(model, parts.signals, prunable.values())
        else:
            sets = {name: view.sets for name, view in views.items() if view.sets is not None}
            self._repaired = RepairedRemoval(model, original, parts.signals, prunable, sets)
        self._normalised = has_batchnorm(model)
        self._untried = True
        self.records = {
            name: GroupRecord(
                network,
                context,
                name,
                prunable[name].channels,
                view.facts,
                view.context,
                {metric: _as_kept(values) for metric, values in view.scores.items()},
                view.pairs,
            )
            for name, view in views.items()
        }

    def measured(self, group: Group, ratios: Sequence[float] | None) -> list[CandidateRecord]:
        """All decisions of a group, every arm's candidate in each."""
        row = self.records[group.name]
        # A generator for each group, so that it draws the same whatever was measured before.
        chance = torch.Generator().manual_seed(
            zlib.crc32(f"{self._seed} {row.context} {row.group}".encode())
        )
        counts = (
            draw_counts(group.channels, chance)
            if ratios is None
            else counts_of(group.channels, ratios)
        )
        sampled = [float(torch.rand((), generator=chance)) < RECALIBRATED_SHARE for _ in counts]
        view = row.view()
        proposals = {
            count: candidates(Decision(view, count), [*arms(), *BASELINES]) for count in counts
        }
        if self._repaired is not None:
            return self._of_repaired(group, row, proposals, self._repaired)
        sets = list(dict.fromkeys(s for found in proposals.values() for s in found.values()))
        changes = self._changes(group, sets)
        found: list[CandidateRecord] = []
        for (count, chosen), recalibrated in zip(proposals.items(), sampled, strict=True):
            after = self._recalibrated(group, list(dict.fromkeys(chosen.values())), recalibrated)
            found += [
                _row(
                    row, count, arm, list(dict.fromkeys(chosen.values())), channels, changes, after
                )
                for arm, channels in chosen.items()
            ]
        return found

    def _of_repaired(
        self,
        group: Group,
        row: GroupRecord,
        rankings: Mapping[int, Mapping[str, Channels]],
        removal: RepairedRemoval,
    ) -> list[CandidateRecord]:
        """All decisions of a group, measured as repair leaves them; sets are candidates, too."""
        known = removal.sets[group.name]
        by_count = {count: known.proposed(count) for count in rankings}
        chosen = {count: {**rankings[count], **by_count[count]} for count in rankings}
        sets = list(dict.fromkeys(s for found in chosen.values() for s in found.values()))
        parts = self._parts.selection, self._parts.evaluation
        selection, evaluation = (removal.measured(group, sets, part) for part in parts)
        found = []
        for count, some in chosen.items():
            distinct = list(dict.fromkeys(some.values()))
            errors = known.errors(some).tolist()
            for (arm, channels), of_set in zip(some.items(), errors, strict=True):
                (first, apart), (second, further) = selection[channels], evaluation[channels]
                found.append(
                    CandidateRecord(
                        network=row.network,
                        context=row.context,
                        group=row.group,
                        count=count,
                        arm=arm,
                        set_id=distinct.index(channels),
                        selection_nats=first.nats,
                        selection_error=first.standard_error,
                        evaluation_nats=second.nats,
                        evaluation_error=second.standard_error,
                        selection_divergence=apart.nats,
                        selection_divergence_error=apart.standard_error,
                        evaluation_divergence=further.nats,
                        evaluation_divergence_error=further.standard_error,
                        channels=channels if arm in by_count[count] else None,
                        **dict(zip(SET_ERRORS, of_set, strict=True)),
                    )
                )
        return found

    def _changes(
        self, group: Group, sets: list[Channels]
    ) -> dict[tuple[str, str, Channels], LossChange]:
        found: dict[tuple[str, str, Channels], LossChange] = {}
        for split, part in (
            ("selection", self._parts.selection),
            ("evaluation", self._parts.evaluation),
        ):
            for oracle in (Oracle(), Oracle("compensated", self._means)):
                measured = replace(oracle, check=self._untried).measure(
                    self._model, part, {group: sets}, loss=part.loss
                )
                for channels, change in zip(sets, measured.changes[group], strict=True):
                    found[oracle.mode, split, channels] = change
                self._untried = False
        return found

    def _recalibrated(
        self, group: Group, sets: list[Channels], wanted: bool
    ) -> Mapping[Channels, LossChange]:
        if not (wanted and self._normalised):
            return {}
        changes = recalibrated_changes(
            self._model,
            self._parts.evaluation,
            group,
            sets,
            calibration=self._parts.signals,
            loss=self._parts.evaluation.loss,
        )
        return dict(zip(sets, changes, strict=True))


def _row(
    group: GroupRecord,
    count: int,
    arm: str,
    sets: list[Channels],
    channels: Channels,
    changes: Mapping[tuple[str, str, Channels], LossChange],
    recalibrated: Mapping[Channels, LossChange],
) -> CandidateRecord:
    plain, kept = (
        [changes[mode, split, channels] for split in ("selection", "evaluation")]
        for mode in ("plain", "compensated")
    )
    after = recalibrated.get(channels)
    return CandidateRecord(
        network=group.network,
        context=group.context,
        group=group.group,
        count=count,
        arm=arm,
        set_id=sets.index(channels),
        selection_nats=plain[0].nats,
        selection_error=plain[0].standard_error,
        evaluation_nats=plain[1].nats,
        evaluation_error=plain[1].standard_error,
        compensated_selection_nats=kept[0].nats,
        compensated_selection_error=kept[0].standard_error,
        compensated_evaluation_nats=kept[1].nats,
        compensated_evaluation_error=kept[1].standard_error,
        recalibrated_nats=None if after is None else after.nats,
        recalibrated_error=None if after is None else after.standard_error,
    )


def _as_kept(scores: Matrix) -> Matrix:
    """Scores as records keep them, so that they propose the same channels when read again."""
    kept: Matrix = scores.astype(np.float32).astype(np.float64)
    return kept
