"""Network and data -> records: what every arm would remove, and what that does to the loss."""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

import torch
from torch import nn

from selector.errors import SelectorError
from selector.features import Decision, candidates, describe_group, describe_run
from selector.groups import Group
from selector.measuring import measure_signals
from selector.objective import Loss
from selector.oracle import Oracle
from selector.reading import Batches, probe_inputs, split_batches
from selector.records import CandidateRecord, GroupRecord, Provenance, Records
from selector.rivals import LossChange
from selector.saliency import arms, first_order_metrics
from selector.scoring import score_signals
from selector.tracing import Groups, find_groups

RATIOS = (0.0, 0.06, 0.12, 0.25, 0.5)
"""Shares of a group's channels that are tried; zero stands for a single channel."""


def record(
    model: nn.Module,
    batches: Batches,
    *,
    network: str,
    family: str = "",
    dataset: str = "",
    origin: str = "own",
    ratios: Sequence[float] = RATIOS,
    loss: Loss | None = None,
    generator: torch.Generator | None = None,
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
        ratios: Shares of the channels to remove, each in [0, 1); zero stands for one channel.
        loss: Mean loss of a batch; cross-entropy by default.
        generator: Source of the `random` metric; seeded with 0 by default.
        progress: Show a progress bar.

    Raises:
        SelectorError: Unusable data, nothing prunable, or a ratio out of range.
    """
    if not network or "/" in network or network.startswith("."):
        raise SelectorError(
            f"network={network!r} must be the name of a folder: not empty, no '/', no leading '.'"
        )
    for ratio in ratios:
        if not 0 <= ratio < 1:
            raise SelectorError(f"ratio {ratio} is outside [0, 1); zero stands for one channel")
    signal_part, selection_part, evaluation_part = split_batches(batches, 3, "recording")
    groups = find_groups(model, probe_inputs(model, signal_part))
    signals = measure_signals(model, signal_part, groups.required(), loss=loss, generator=generator)
    scores = {
        group: {name: values.numpy() for name, values in found.items()}
        for group, found in score_signals(signals).items()
    }
    run = next(iter(signals.values())).run
    assert run is not None
    state = describe_run(run, macs_kept=1.0)
    rows = [
        GroupRecord(
            network,
            "unpruned",
            name,
            group.channels,
            describe_group(model, group, groups.costs, signals[name]),
            state,
            scores[name],
        )
        for name, group in groups.prunable.items()
    ]
    proposals = {
        (row.group, count): candidates(
            Decision(row.facts, row.state, row.scores, count), [*arms(), "random"]
        )
        for row in rows
        for count in _counts(row.channels, ratios)
    }
    changes = [
        _measured(model, part, groups, proposals, loss, progress)
        for part in (selection_part, evaluation_part)
    ]
    images = sum(change.images for change in list(changes[0].values())[:1])
    provenance = Provenance(network, family, dataset, origin, images, _versions())
    measured = [
        row
        for (group, count), found in proposals.items()
        for row in _rows(network, group, count, found, changes)
    ]
    return Records((provenance,), tuple(rows), tuple(measured))


def _counts(channels: int, ratios: Iterable[float]) -> list[int]:
    return sorted({min(channels - 1, max(1, round(ratio * channels))) for ratio in ratios})


Proposals = Mapping[tuple[str, int], Mapping[str, tuple[int, ...]]]
Key = tuple[str, tuple[int, ...]]


def _measured(
    model: nn.Module,
    part: Batches,
    groups: Groups,
    proposals: Proposals,
    loss: Loss | None,
    progress: bool,
) -> dict[Key, LossChange]:
    sets: dict[Group, list[tuple[int, ...]]] = {}
    for (name, _), found in proposals.items():
        sets.setdefault(groups.prunable[name], []).extend(found.values())
    changes = Oracle().measure(model, part, sets, loss=loss, progress=progress).changes
    return {
        (group.name, channels): change
        for group, asked in sets.items()
        for channels, change in zip(asked, changes[group], strict=True)
    }


def _rows(
    network: str,
    group: str,
    count: int,
    found: Mapping[str, tuple[int, ...]],
    changes: Sequence[Mapping[Key, LossChange]],
) -> list[CandidateRecord]:
    ids = {channels: number for number, channels in enumerate(dict.fromkeys(found.values()))}
    selection, evaluation = changes
    return [
        CandidateRecord(
            network=network,
            context="unpruned",
            group=group,
            count=count,
            arm=arm,
            set_id=ids[channels],
            selection_nats=selection[group, channels].nats,
            selection_error=selection[group, channels].standard_error,
            evaluation_nats=evaluation[group, channels].nats,
            evaluation_error=evaluation[group, channels].standard_error,
        )
        for arm, channels in found.items()
    ]


def _versions() -> str:
    return json.dumps(
        {
            "saliency-selector": version("saliency-selector"),
            "torch": torch.__version__,
            "torch-pruning": version("torch-pruning"),
            "metrics": first_order_metrics(),
        }
    )
