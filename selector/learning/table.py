"""Records -> what the boosters learn from: features, normalised regrets, loss changes, the SBS."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from selector.errors import SelectorError
from selector.learning.features import Proposals, candidates, describe
from selector.learning.regret import CAP, regrets
from selector.records.decision import CONTEXT, FACTS, Decision, SetKnowledge
from selector.records.records import Records
from selector.saliency.proposals.registry import PROPOSALS
from selector.saliency.registry import find_metric, known_metrics
from selector.typing import Channels, Matrix, Names, Numbers

LARGEST = 1e30
"""Of a feature: a metric that is zero but for one channel has shares beyond single precision."""
DAMAGE_OFFSET = 0.005
"""Nats added before the logarithm in which loss changes are learnt."""


@dataclass(frozen=True, eq=False)
class Described:
    """Decisions as the boosters see them: one row for each arm's candidate."""

    features: Matrix
    """Shape (rows, features); the last is the arm's number."""
    decision: Numbers
    """Of every row the number of its decision, ascending."""
    arm: Numbers
    """Of every row the number of its arm."""
    proposals: Sequence[Proposals]
    """Of every decision what the arms would remove, in the order of the rows."""
    facts: Matrix
    """Of every decision facts, context and step, shape (decisions, numbers)."""


@dataclass(frozen=True, eq=False)
class TrainingTable:
    """Measured decisions as the boosters see them, with the loss change of every candidate."""

    arms: Sequence[str]
    metrics: Sequence[str]
    seen: Described
    selection: Matrix
    """Of every row what is learnt, on the selection split; see `CandidateRecord.label`."""
    evaluation: Matrix
    network: Names
    """Of every decision."""
    context: Names
    weight: Matrix
    """Of every decision."""

    @property
    def nats(self) -> Matrix:
        """Of every row the mean loss change over both splits."""
        mean: Matrix = (self.selection + self.evaluation) / 2
        return mean

    @property
    def regret(self) -> Matrix:
        """Of every row the normalised regret, capped, over both splits."""
        nats = self.nats
        parts = np.split(nats, np.flatnonzero(np.diff(self.seen.decision)) + 1)
        capped: Matrix = np.minimum(np.concatenate([regrets(part) for part in parts]), CAP)
        return capped

    @property
    def row_network(self) -> Names:
        """Of every row its network."""
        names: Names = self.network[self.seen.decision]
        return names

    @property
    def row_weight(self) -> Matrix:
        """Of every row its weight: those of a decision share the decision's; one on average."""
        sizes = np.bincount(self.seen.decision)
        weights: Matrix = (self.weight / sizes)[self.seen.decision]
        scaled: Matrix = weights / weights.mean()
        return scaled

    def of_networks(self, names: Iterable[str]) -> "TrainingTable":
        """Only the decisions of these networks."""
        kept = np.isin(self.network, list(names))
        rows = kept[self.seen.decision]
        seen = Described(
            self.seen.features[rows],
            (np.cumsum(kept) - 1)[self.seen.decision[rows]],
            self.seen.arm[rows],
            [found for found, keep in zip(self.seen.proposals, kept, strict=True) if keep],
            self.seen.facts[kept],
        )
        return replace(
            self,
            seen=seen,
            selection=self.selection[rows],
            evaluation=self.evaluation[rows],
            network=self.network[kept],
            context=self.context[kept],
            weight=self.weight[kept],
        )


def describe_all(
    decisions: Sequence[Decision],
    proposals: Sequence[Proposals],
    metrics: Sequence[str],
    arms: Sequence[str],
) -> Described:
    """Decisions as the boosters see them."""
    _ask_together(decisions, proposals)
    rows = [
        np.clip(describe(decision, found, metrics), -LARGEST, LARGEST).astype(np.float32)
        for decision, found in zip(decisions, proposals, strict=True)
    ]
    which = np.array([arms.index(arm) for found in proposals for arm in found])
    sizes = [len(found) for found in proposals]
    features = np.concatenate([np.concatenate(rows), which[:, None].astype(np.float32)], 1)
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    return Described(features, numbers, which, proposals, described(decisions))


def _ask_together(decisions: Sequence[Decision], proposals: Sequence[Proposals]) -> None:
    """Ask for the errors of all of a group's sets at once: what is asked singly is known then."""
    asked: dict[int, tuple[SetKnowledge, dict[str, Channels]]] = {}
    for decision, found in zip(decisions, proposals, strict=True):
        if (known := decision.view.sets) is not None:
            _, sets = asked.setdefault(id(known), (known, {}))
            sets.update({f"{arm} {decision.count}": channels for arm, channels in found.items()})
    for known, sets in asked.values():
        known.errors(sets)


def training_table(
    records: Records,
    arms: Sequence[str],
    metrics: Sequence[str],
    weights: Mapping[str, float] | None = None,
) -> TrainingTable:
    """All decisions of some records.

    Args:
        records: Measured candidates.
        arms: Those whose candidates are learnt from.
        metrics: Those whose opinion is a feature; the arms are among them.
        weights: Network -> its weight, which its decisions share; one where it is not named.

    Raises:
        SelectorError: A weight of a network that is not there, or that is no number above zero.
    """
    _check_weights(weights or {}, [provenance.network for provenance in records.networks])
    decisions, proposals, found = [], [], []
    networks, contexts = [], []
    for group, decision, rows in records.decisions():
        known = {row.arm: row for row in rows if row.arm in arms}
        decisions.append(decision)
        proposals.append(candidates(decision, list(known)))
        found += [known[arm] for arm in proposals[-1]]
        networks.append(group.network)
        contexts.append(group.context)
    return TrainingTable(
        arms,
        metrics,
        describe_all(decisions, proposals, metrics, arms),
        np.array([row.label[0] for row in found]),
        np.array([row.label[1] for row in found]),
        np.array(networks),
        np.array(contexts),
        _shared(np.array(networks), weights or {}),
    )


def _shared(networks: Names, weights: Mapping[str, float]) -> Matrix:
    """Of every decision its part of its network's weight: networks weigh alike, not decisions."""
    names, which = np.unique(networks, return_inverse=True)
    whole = np.array([weights.get(name, 1.0) for name in names.tolist()])
    parts: Matrix = (whole / np.bincount(which))[which]
    return parts


def _check_weights(weights: Mapping[str, float], networks: Sequence[str]) -> None:
    for name, weight in weights.items():
        if name not in networks:
            raise SelectorError(f"weights name {name!r}; networks: {', '.join(networks)}")
        if not 0 < weight < float("inf"):
            raise SelectorError(
                f"the weight {weight!r} of {name!r} must be a finite number above 0; 1 is neutral"
            )


def single_best(table: TrainingTable, by: str = "regret") -> str:
    """The arm with the lowest mean cost among those that always apply; networks weigh as asked.

    Args:
        table: Measured decisions.
        by: `regret`, normalised and capped, or `nats`.

    Raises:
        SelectorError: No arm was measured in every decision.
    """
    cost = table.regret if by == "regret" else table.nats
    count = len(table.network)
    arm = table.seen.arm
    always = {
        name: float(np.average(cost[arm == number], weights=table.weight))
        for number, name in enumerate(table.arms)
        if int((arm == number).sum()) == count
    }
    if not always:
        raise SelectorError("no arm was measured in every decision; record with all the metrics")
    return min(always, key=always.__getitem__)


def log_damage(nats: Matrix) -> Matrix:
    """Loss changes in the logarithm in which they are learnt."""
    logs: Matrix = np.log(np.maximum(nats, 0) + DAMAGE_OFFSET)
    return logs


NUMBERS = (*FACTS, *CONTEXT, "ratio")
"""Names of the columns of `described`."""


def described(decisions: Sequence[Decision]) -> Matrix:
    """Facts, context and step of decisions, shape (decisions, numbers)."""
    return np.array(
        [
            [
                *vars(one.facts).values(),
                *vars(one.context).values(),
                one.count / one.view.channels,
            ]
            for one in decisions
        ]
    )


def names_of(records: Records) -> tuple[list[str], list[str]]:
    """The arms that some records measured, and the metrics that they hold scores of.

    Raises:
        SelectorError: A metric or proposal that is not registered, or fewer than two arms.
    """
    measured = sorted({row.arm for row in records.candidates if row.channels is None})
    sets = {row.arm for row in records.candidates if row.channels is not None}
    scored = sorted({name for group in records.groups for name in group.scores})
    known = known_metrics({*measured, *scored})
    unknown = [f"metric {name!r}" for name in (*measured, *scored) if name not in known]
    unknown += [f"proposal {name!r}" for name in sorted(sets - set(PROPOSALS))]
    if unknown:
        raise SelectorError(
            f"the records hold {unknown[0]}, which is not in the table; register it before "
            "learning from them, or record again without it"
        )
    arms = [n for n in known_metrics(measured) if find_metric(n).arm or (sets and n in PROPOSALS)]
    arms += [name for name in PROPOSALS if name in sets]
    if len(arms) < 2:
        raise SelectorError(f"records name {len(arms)} known arm; record at least two metrics")
    return arms, known_metrics(scored)
