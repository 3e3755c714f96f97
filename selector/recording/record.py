"""Network and data -> records: what every arm would remove, and what that does to the loss.

In the unpruned network and in states that pruning leaves; each candidate removed plainly and with
its means compensated, on two disjoint sets of images; a sample of decisions also after BatchNorm
was recalibrated. A journal keeps what is measured: a killed run loses one group at most.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn
from tqdm import tqdm

from selector.data.batches import Batches
from selector.data.calibration import Calibration
from selector.data.checks import check_model, check_path, is_number, whole_number
from selector.data.exclusive import one_at_a_time
from selector.data.fingerprint import fingerprint_of
from selector.data.forward import device_of, probe_inputs
from selector.data.loss import Loss, evaluate
from selector.data.own_forward import Forward
from selector.errors import SelectorError
from selector.network.groups import Group
from selector.network.tracing import find_groups
from selector.recording.contexts import (
    SELECTOR,
    UNPRUNED,
    PrunedContext,
    check_distinct,
    draw_contexts,
    least_macs,
)
from selector.recording.journal import Journal
from selector.recording.measure import NetworkState, Parts
from selector.records.measurement import CandidateRecord, GroupRecord
from selector.records.provenance import Provenance, check_network_name
from selector.records.records import Records
from selector.saliency.proposals.registry import PROPOSALS
from selector.saliency.registry import METRICS, arms, first_order_metrics
from selector.statistics.weights import normalisation_scale

Recorded = Literal["plain", "repaired"]


@dataclass(frozen=True)
class _Asked:
    """What every state of a network is measured with."""

    network: str
    macs: float
    """Of the unpruned network."""
    ratios: tuple[float, ...] | None
    seed: int
    mode: Recorded


@one_at_a_time
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
    mode: Recorded = "plain",
    unseen: bool | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    forward: Forward | None = None,
    journal: str | Path | None = None,
    output: str | Path | None = None,
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
        origin: `own`, `third_party` for networks that others trained, or `foreign` for those
            that are kept for testing and never learnt from.
        contexts: Pruned states in which the network is recorded, besides the unpruned one, or how
            many to draw.
        ratios: Shares of the channels to remove, each in [0, 1), zero standing for one channel;
            drawn for every group by default, most of them between 2 and 25 %.
        mode: What is measured of every candidate: `plain` removal, with the removed channels' means
            beside it; or `repaired` removal, with the divergence from the unpruned network's
            softened outputs beside it, and proposals of sets among the candidates.
        unseen: Whether the network was not trained on these images, where you know it.
        seed: Of all that is drawn, and of the `random` metric.
        loss: Mean loss of a batch; cross-entropy by default.
        forward: Runs the network on a batch, as for `prune`.
        journal: Folder that keeps what is measured: the same call continues there after it was
            killed. It is emptied when the records are saved in `output`, and stays without one.
        output: Folder that the records are saved in, as `Records.save` does.
        progress: Show a progress bar.

    Raises:
        SelectorError: Unusable data, nothing prunable, a ratio out of range, a journal that is
            another recording's or in use, or an output that cannot be written.
    """
    check_model(model)
    check_network_name(network)
    check_path("journal", journal)
    check_path("output", output)
    if mode not in get_args(Recorded):
        known = ", ".join(get_args(Recorded))
        raise SelectorError(f"unknown mode {mode!r}; known: {known}")
    ratios = None if ratios is None else _checked(ratios)
    parts = Parts(*Calibration(batches, loss).split(3, "recording"))
    chance = torch.Generator().manual_seed(seed)
    whole = find_groups(model, probe_inputs(model, parts.signals))
    whole.required()
    macs = whole.costs.total("macs")
    if isinstance(contexts, tuple | list):
        drawn = tuple(contexts)
    else:
        count, least = whole_number("contexts", contexts, 0), least_macs(whole)
        criteria = _criteria(mode, model, whole.prunable.values())
        drawn = draw_contexts(count, chance, least, criteria=criteria)
    check_distinct(drawn)
    diary = Journal(
        None if journal is None else Path(journal),
        f"{network}-{seed}",
        fingerprint_of(
            model,
            [parts.signals, parts.selection, parts.evaluation],
            drawn,
            ratios,
            seed,
            mode,
            _versions(),
        ),
    )
    with diary.opened():
        asked = _Asked(network, macs, ratios, seed, mode)
        groups, rows = _measured(model, parts, drawn, asked, diary, progress)
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
            mode,
            unseen,
        )
        found = Records((provenance,), tuple(groups), tuple(rows))
        if output is not None:
            # Where the call before was killed between the two, the records are there.
            if not (diary.resumed and _is_saved(found, Path(output) / network)):
                found.save(output)
            diary.close()
    return found


def _is_saved(records: Records, folder: Path) -> bool:
    return folder.is_dir() and Records.load(folder).candidates == records.candidates


def _measured(
    model: nn.Module,
    parts: Parts,
    drawn: Sequence[PrunedContext],
    asked: _Asked,
    diary: Journal,
    progress: bool,
) -> tuple[list[GroupRecord], list[CandidateRecord]]:
    """All groups in all states, and their candidates: from the journal, else measured now."""
    groups: list[GroupRecord] = []
    rows: list[CandidateRecord] = []
    for number, context in enumerate((None, *drawn)):
        name = UNPRUNED if context is None else context.name
        small = model if context is None else context.reached(model, parts.signals)
        state = NetworkState(
            small,
            parts,
            asked.network,
            name,
            asked.macs,
            asked.seed + number,
            model if asked.mode == "repaired" else None,
        )
        with tqdm(total=len(state.groups.prunable), desc=name, disable=not progress) as bar:
            for group in state.groups.prunable.values():
                groups.append(state.records[group.name])
                rows += diary.kept(groups[-1]) or diary.keep(
                    name, group.name, state.measured(group, asked.ratios)
                )
                bar.update()
    return groups, rows


def _criteria(mode: Recorded, model: nn.Module, groups: Iterable[Group]) -> list[str]:
    """What drawn states are pruned by: the arms, and for repaired removal all that may choose.

    Only what every group can be pruned by.
    """
    normalised = all(normalisation_scale(model, group) is not None for group in groups)
    every = [(name, METRICS[name].needs) for name in arms()]
    if mode == "repaired":
        every += [(one.name, one.needs) for one in PROPOSALS.values() if one.kind == "set"]
    names = [name for name, needs in every if normalised or "normalisation" not in needs]
    return [*names, SELECTOR] if mode == "repaired" else names


def _checked(ratios: object) -> tuple[float, ...]:
    """Ratios as floats.

    Raises:
        SelectorError: No list of numbers in [0, 1).
    """
    if isinstance(ratios, str) or not isinstance(ratios, Iterable):
        raise SelectorError(f"ratios={ratios!r} must be shares in a list, as in [0.1, 0.25]")
    for ratio in ratios:
        if not is_number(ratio) or not 0 <= ratio < 1:
            raise SelectorError(f"ratio {ratio} is outside [0, 1); zero stands for one channel")
    return tuple(map(float, ratios))


def _mean(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else (one + other) / 2


def _versions() -> str:
    return json.dumps(
        {
            "saliency-selector": version("saliency-selector"),
            "torch": torch.__version__,
            "torch-pruning": version("torch-pruning"),
            "metrics": first_order_metrics(),
        }
    )
