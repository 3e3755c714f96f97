"""How far a selector closes the gap between the single best metric and the oracle, held out.

Leave one family out: a selector learns from the networks of all other families and is judged on
those of this one. Every choice is scored on the evaluation split; what is chosen by measuring (the
VBS, shortlists) is chosen on the selection split, so nothing is judged by what it was chosen by.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from selector.features import Matrix
from selector.learning import CAP, normalised, normalised_regrets, single_best
from selector.prediction import Prediction
from selector.records import CandidateRecord, Records
from selector.saliency import find_metric, known_metrics
from selector.selection import SaliencySelector


@dataclass(frozen=True)
class Judged:
    """One method over all held-out decisions."""

    method: str
    oracle_calls: float
    """Candidates measured in each decision."""
    regret: float
    """Mean normalised regret, capped at 3."""
    nats: float
    """Mean loss change of what was chosen."""
    gap_closed: float
    """(SBS - method) / (SBS - VBS) on normalised regret."""
    gap_closed_nats: float
    """The same on loss changes in nats."""


@dataclass(frozen=True)
class Evaluation:
    """All methods, and how the selector did on single networks."""

    decisions: int
    networks: int
    families: int
    methods: tuple[Judged, ...]
    worse_than_single_best: float
    """Share of held-out networks on which the selector's regret is above the SBS's."""
    fallback_share: float
    """Share of decisions in which the single best was kept for want of a credible gain."""

    def of(self, method: str) -> Judged:
        """The row of a method."""
        return next(row for row in self.methods if row.method == method)


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """A decision on a held-out network, with what was known without it."""

    network: str
    rows: Sequence[CandidateRecord]
    prediction: Prediction
    single_best: str
    portfolios: Sequence[Sequence[str]]
    """Fixed greedy portfolios of 1, 2, 3 arms of the training networks."""

    def cost(self, row: CandidateRecord) -> float:
        """Normalised regret on the evaluation split."""
        regrets = normalised(np.array([r.evaluation_nats for r in self.rows]))
        return min(float(regrets[list(self.rows).index(row)]), CAP)

    def arm(self, name: str) -> CandidateRecord:
        """What an arm chose."""
        return next(row for row in self.rows if row.arm == name)

    def measured(self, arms: Sequence[str]) -> CandidateRecord:
        """The best of these arms on the selection split."""
        found = [row for row in self.rows if row.arm in arms]
        return min(found, key=lambda row: row.selection_nats)


def leave_one_family_out(records: Records, *, progress: bool = False) -> Evaluation:
    """Judge selectors that have not seen the family they are judged on."""
    families = sorted({p.family for p in records.networks})
    held: list[_HeldOut] = []
    for family in tqdm(families, "families", disable=not progress):
        inside = [p.network for p in records.networks if p.family == family]
        outside = [p.network for p in records.networks if p.family != family]
        held += _held_out(records.of_networks(outside), records.of_networks(inside))
    return _judge(held, len(families))


def _held_out(train: Records, test: Records) -> list[_HeldOut]:
    learnt = SaliencySelector().fit(train)
    measured = {row.arm for row in train.candidates}
    arms = [name for name in known_metrics(sorted(measured)) if find_metric(name).arm]
    best = single_best(train, arms)
    portfolios = greedy_portfolios(train, arms, 3)
    return [
        _HeldOut(
            group.network,
            [row for row in rows if row.arm in arms],
            learnt.predict(decision),
            best,
            portfolios,
        )
        for group, decision, rows in test.decisions()
    ]


def greedy_portfolios(records: Records, arms: Sequence[str], size: int) -> list[list[str]]:
    """Arms added one by one, each the one that lowers the mean regret of the best in it most."""
    table = []
    for _, _, rows in records.decisions():
        known = [row for row in rows if row.arm in arms]
        regret = dict(zip([row.arm for row in known], normalised_regrets(known), strict=True))
        table.append(np.array([min(regret.get(arm, CAP), CAP) for arm in arms]))
    costs: Matrix = np.stack(table)
    chosen: list[int] = []
    for _ in range(size):
        left = [i for i in range(len(arms)) if i not in chosen]
        chosen.append(min(left, key=lambda i: float(costs[:, [*chosen, i]].min(1).mean())))
    return [[arms[i] for i in chosen[: n + 1]] for n in range(size)]


def _judge(held: Sequence[_HeldOut], families: int) -> Evaluation:
    arms = sorted({row.arm for decision in held for row in decision.rows})
    choosers: dict[str, tuple[float, Callable[[_HeldOut], CandidateRecord]]] = {
        "single best (SBS)": (0, lambda d: d.arm(d.single_best)),
        "selector": (0, lambda d: d.arm(d.prediction.trusted)),
        "fixed portfolio of 2 + oracle": (2, lambda d: d.measured(d.portfolios[1])),
        "selector, verify=2": (2, lambda d: d.measured(d.prediction.shortlist(2))),
        "fixed portfolio of 3 + oracle": (3, lambda d: d.measured(d.portfolios[2])),
        "selector, verify=3": (3, lambda d: d.measured(d.prediction.shortlist(3))),
        "oracle (VBS)": (len(arms), lambda d: d.measured(arms)),
    }
    costs = {m: np.array([d.cost(pick(d)) for d in held]) for m, (_, pick) in choosers.items()}
    nats = {
        m: np.array([pick(d).evaluation_nats for d in held]) for m, (_, pick) in choosers.items()
    }
    fixed = {m: (costs[m].mean(), nats[m].mean()) for m in costs}
    base, top = fixed["single best (SBS)"], fixed["oracle (VBS)"]
    rows = [
        Judged(
            method,
            calls,
            float(fixed[method][0]),
            float(fixed[method][1]),
            float((base[0] - fixed[method][0]) / (base[0] - top[0])),
            float((base[1] - fixed[method][1]) / (base[1] - top[1])),
        )
        for method, (calls, _) in choosers.items()
    ]
    networks = np.array([d.network for d in held])
    worse = [
        costs["selector"][networks == n].mean() > costs["single best (SBS)"][networks == n].mean()
        for n in np.unique(networks)
    ]
    return Evaluation(
        decisions=len(held),
        networks=len(worse),
        families=families,
        methods=tuple(rows),
        worse_than_single_best=float(np.mean(worse)),
        fallback_share=float(np.mean([d.prediction.fell_back for d in held])),
    )
