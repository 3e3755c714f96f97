"""Network and data -> records: what every arm would remove, and what that does to the loss.

In the unpruned network and in states that pruning leaves; each candidate removed plainly and with
its means compensated, on two disjoint sets of images; a sample of decisions also after BatchNorm
was recalibrated. A journal keeps what is measured: a killed run loses one group at most.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from selector.data.batches import Batches, split_batches
from selector.data.forward import device_of, probe_inputs
from selector.data.loss import Loss, LossChange, evaluate
from selector.errors import SelectorError
from selector.learning.features import candidates
from selector.network.compensation import Means, measure_means
from selector.network.groups import Group
from selector.network.layers import NORMALISATION
from selector.network.tracing import find_groups
from selector.oracle.oracle import Oracle
from selector.oracle.recalibrated import recalibrated_changes
from selector.recording.contexts import (
    UNPRUNED,
    PrunedContext,
    counts_of,
    draw_contexts,
    draw_counts,
    least_macs,
)
from selector.recording.journal import Journal
from selector.records.decision import Decision
from selector.records.describe import describe_group, describe_run
from selector.records.provenance import Provenance
from selector.records.records import CandidateRecord, GroupRecord, Records
from selector.saliency.registry import arms, first_order_metrics
from selector.saliency.scoring import score_signals
from selector.statistics.collect import FIRST_ORDER, PAIRS, measure_signals
from selector.typing import Channels, Matrix

BASELINES = ("rank_mean", "random")
"""Measured beside the arms, to compare with."""
RECALIBRATED_SHARE = 0.1
"""Share of the decisions that are measured after recalibration, too."""


def record(
    model: nn.Module,
    batches: Batches,
    *,
    network: str,
    family: str = "",
    dataset: str = "",
    origin: str = "own",
    contexts: int | Sequence[PrunedContext] = 2,
    ratios: Sequence[float] | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    journal: str | Path | None = None,
    progress: bool = False,
) -> Records:
    """Measure what each metric's choice does to the loss, in every group and at several ratios.

    Args:
        model: A trained network; left exactly as found.
        batches: At least three batches of (inputs, targets), best of images that the network was
            not trained on: the first, fourth, ... give the signals, the second, fifth, ... the
            selection split, the third, sixth, ... the evaluation split.
        network: Name of the network in the records.
        family: Kind of architecture; what evaluation leaves out together.
        dataset: Name of the data set.
        origin: `own`, or `foreign` for networks that are kept for testing.
        contexts: Pruned states in which the network is recorded beside the unpruned one, or how
            many to draw.
        ratios: Shares of the channels to remove, each in [0, 1), zero standing for one channel;
            drawn for every group by default, most of them between 2 and 25 %.
        seed: Of all that is drawn, and of the `random` metric.
        loss: Mean loss of a batch; cross-entropy by default.
        journal: Folder that keeps what is measured until the whole is returned: the same call
            continues there after it was killed.
        progress: Show a progress bar.

    Raises:
        SelectorError: Unusable data, nothing prunable, or a ratio out of range.
    """
    if not network or "/" in network or network.startswith("."):
        raise SelectorError(
            f"network={network!r} must be the name of a folder: not empty, no '/', no leading '.'"
        )
    for ratio in ratios or ():
        if not 0 <= ratio < 1:
            raise SelectorError(f"ratio {ratio} is outside [0, 1); zero stands for one channel")
    parts = _Parts(*split_batches(batches, 3, "recording"))
    chance = torch.Generator().manual_seed(seed)
    whole = find_groups(model, probe_inputs(model, parts.signals))
    whole.required()
    macs = whole.costs.total("macs")
    drawn = (
        draw_contexts(contexts, chance, least_macs(whole))
        if isinstance(contexts, int)
        else tuple(contexts)
    )
    diary = Journal(None if journal is None else Path(journal), network, seed)
    groups: list[GroupRecord] = []
    rows: list[CandidateRecord] = []
    for number, context in enumerate((None, *drawn)):
        name = UNPRUNED if context is None else context.name
        small = model if context is None else context.reached(model, parts.signals, loss)
        state = _State(small, parts, network, name, macs, loss, seed + number)
        with tqdm(total=len(state.groups.prunable), desc=name, disable=not progress) as bar:
            for group in state.groups.prunable.values():
                groups.append(state.records[group.name])
                rows += diary.kept(name, group.name) or diary.keep(
                    name, group.name, state.measured(group, ratios)
                )
                bar.update()
    judged = [evaluate(model, part, loss) for part in (parts.selection, parts.evaluation)]
    provenance = Provenance(
        network,
        family,
        dataset,
        origin,
        judged[0].images,
        _versions(),
        seed,
        str(device_of(model)),
        macs,
        whole.costs.total("parameters"),
        _mean(judged[0].accuracy, judged[1].accuracy),
    )
    diary.close()
    return Records((provenance,), tuple(groups), tuple(rows))


def _as_kept(scores: Tensor) -> Matrix:
    """Scores as records keep them, so that they propose the same channels when read again."""
    kept: Matrix = scores.numpy().astype(np.float32).astype(np.float64)
    return kept


def _mean(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else (one + other) / 2


@dataclass(frozen=True)
class _Parts:
    """Disjoint parts of the data."""

    signals: Batches
    selection: Batches
    evaluation: Batches


class _State:
    """A network in one state: its groups, scores and means, and the oracle on them."""

    def __init__(
        self,
        model: nn.Module,
        parts: _Parts,
        network: str,
        context: str,
        whole_macs: float,
        loss: Loss | None,
        seed: int,
    ) -> None:
        self._model, self._parts, self._loss = model, parts, loss
        self._seed = seed
        self.groups = find_groups(model, probe_inputs(model, parts.signals))
        prunable = self.groups.prunable
        generator = torch.Generator().manual_seed(seed)
        signals = measure_signals(
            model,
            parts.signals,
            prunable,
            needs=FIRST_ORDER | PAIRS,
            loss=loss,
            generator=generator,
        )
        scores = score_signals(signals)
        self._means: Means = measure_means(model, parts.signals, prunable.values())
        self._normalised = any(isinstance(layer, NORMALISATION) for layer in model.modules())
        self._untried = True
        self.records: dict[str, GroupRecord] = {}
        for name, group in prunable.items():
            run = signals[name].run
            assert run is not None
            self.records[name] = GroupRecord(
                network,
                context,
                name,
                group.channels,
                describe_group(model, group, self.groups.costs, signals[name]),
                describe_run(run, self.groups.costs.total("macs") / whole_macs),
                {metric: _as_kept(values) for metric, values in scores[name].items()},
                signals[name].pairs,
            )

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
        dear = [float(torch.rand((), generator=chance)) < RECALIBRATED_SHARE for _ in counts]
        proposals = {
            count: candidates(
                Decision(row.facts, row.state, row.scores, count, row.pairs), [*arms(), *BASELINES]
            )
            for count in counts
        }
        sets = list(dict.fromkeys(s for found in proposals.values() for s in found.values()))
        changes = self._changes(group, sets)
        found: list[CandidateRecord] = []
        for (count, chosen), recalibrated in zip(proposals.items(), dear, strict=True):
            after = self._recalibrated(group, list(dict.fromkeys(chosen.values())), recalibrated)
            found += [
                _row(
                    row, count, arm, list(dict.fromkeys(chosen.values())), channels, changes, after
                )
                for arm, channels in chosen.items()
            ]
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
                    self._model, part, {group: sets}, loss=self._loss
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
            loss=self._loss,
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


def _versions() -> str:
    return json.dumps(
        {
            "saliency-selector": version("saliency-selector"),
            "torch": torch.__version__,
            "torch-pruning": version("torch-pruning"),
            "metrics": first_order_metrics(),
        }
    )
