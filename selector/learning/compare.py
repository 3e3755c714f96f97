"""Does retraining help? Selectors compared on a user's own networks, each left out in turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from selector.data.checks import check_kind
from selector.errors import SelectorError
from selector.learning.comparison import ALONE, SHIPPED, TOGETHER, Comparison
from selector.learning.evaluation import SBS_NATS, SBS_REGRET, VBS, Grid, Judged, Outcome, joined
from selector.learning.prediction import Prediction
from selector.learning.selector import SaliencySelector
from selector.learning.table import TrainingTable, names_of, single_best, training_table
from selector.records.records import Records
from selector.typing import Matrix, Numbers


@dataclass(frozen=True, eq=False)
class Field:
    """What is compared: tables of one's own networks, and of all networks together."""

    records: Records
    own: TrainingTable
    both: TrainingTable | None
    """One's own networks and those of `base`; None without `base`."""
    given: SaliencySelector
    settings: SaliencySelector

    def train(self, network: str) -> dict[str, TrainingTable]:
        """What the retrained selectors learn from when a network is left out."""
        found = {}
        for name, table in ((ALONE, self.own), (TOGETHER, self.both)):
            if table is not None:
                others = sorted(set(table.network.tolist()) - {network})
                if len(others) > 1:
                    found[name] = table.of_networks(others)
        return found


def compare(
    records: Records,
    *,
    base: Records | None = None,
    weight: float = 1.0,
    given: SaliencySelector | None = None,
    settings: SaliencySelector | None = None,
    progress: bool = False,
) -> Comparison:
    """Judge selectors on one's own networks: as shipped, and retrained without each in turn.

    Args:
        records: Of one's own networks, two or more; three to learn from them alone.
        base: Other networks' records to learn from as well; those that are one's own are left out.
        weight: Of a decision of one's own, one of `base` counting one.
        given: The selector to beat; the shipped one by default.
        settings: What the retrained selectors are made like; the defaults otherwise.
        progress: Show a progress bar.

    Raises:
        SelectorError: Too few networks, a useless weight, records that do not belong together,
            or records that a selector cannot choose in.
    """
    check_kind("records", records, Records, "read a folder of them by Records.load(path)")
    field, unused = _field(records, base, weight, given, settings)
    names = sorted(set(field.own.network.tolist()))
    parts = [
        _judged(field, name)
        for name in tqdm(names, "networks left out", disable=not progress, leave=False)
    ]
    judged = joined(parts)
    return Comparison.of(
        judged,
        known=tuple(name for name in names if name in field.given.networks_),
        notes=_notes(records, base, unused, judged),
    )


def _field(
    records: Records,
    base: Records | None,
    weight: float,
    given: SaliencySelector | None,
    settings: SaliencySelector | None,
) -> tuple[Field, tuple[str, ...]]:
    """The field, and the networks of the base that are one's own."""
    own, others = records.own(), None if base is None else base.own()
    mine = {provenance.network for provenance in own.networks}
    theirs = {provenance.network for provenance in others.networks} if others else set()
    unused = tuple(sorted(theirs & mine))
    if others is not None:
        others = others.of_networks(theirs - mine)
    _check_enough(len(mine), bool(theirs - mine))
    if weight != 1 and not theirs - mine:
        raise SelectorError(
            f"weight={weight!r} weighs your networks against those of base, which has no others; "
            "give base, or leave it out"
        )
    both = own + others if others else own
    table = training_table(both, *names_of(both), dict.fromkeys(sorted(mine), weight))
    field = Field(
        records=own,
        own=table.of_networks(mine),
        both=table if theirs - mine else None,
        given=given or SaliencySelector.shipped(),
        settings=settings or SaliencySelector(),
    )
    return field, unused


def _check_enough(count: int, others: bool) -> None:
    if count < (2 if others else 3):
        alone = "" if others else ", or two together with other networks' records"
        raise SelectorError(
            f"{count} network{'s' * (count != 1)} of your own cannot say whether retraining helps: "
            f"one is left out, and the others must teach; record {2 if others else 3} at least"
            + alone
        )


def _judged(field: Field, network: str) -> Judged:
    """All methods on one network, which no retrained selector has seen."""
    test = field.own.of_networks([network])
    grid = Grid.of(test)
    others = field.own.of_networks(set(field.own.network.tolist()) - {network})
    chosen: dict[str, Numbers] = {
        SBS_NATS: _always(test, single_best(others, "nats")),
        SBS_REGRET: _always(test, single_best(others)),
        SHIPPED: _numbers(test, _given_predictions(field, network), grid),
    }
    for name, train in field.train(network).items():
        learnt = SaliencySelector(**field.settings.get_params()).fit_table(train)
        chosen[name] = _numbers(test, learnt.predict_described(test.seen), grid)
    chosen[VBS] = grid.measured()
    outcomes = {name: _outcome(name, grid, arms) for name, arms in chosen.items()}
    family = {p.network: p.family for p in field.records.networks}[network]
    count = len(test.network)
    return Judged(
        outcomes,
        test.network,
        np.array([family] * count),
        test.context,
        test.seen.facts[:, -1],
        np.empty((0, 4)),
    )


def _given_predictions(field: Field, network: str) -> list[Prediction]:
    decisions = [d for _, d, _ in field.records.of_networks([network]).decisions()]
    return field.given.predict_many(decisions)


def _always(test: TrainingTable, arm: str) -> Numbers:
    return np.full(len(test.network), list(test.arms).index(arm))


def _numbers(test: TrainingTable, predictions: Sequence[Prediction], grid: Grid) -> Numbers:
    """The arm that a selector trusts in every decision, of those that were measured there."""
    numbers: Mapping[str, int] = {arm: number for number, arm in enumerate(test.arms)}
    found = []
    for row, prediction in zip(grid.evaluation, predictions, strict=True):
        order = [prediction.trusted, *sorted(prediction.cost, key=prediction.cost.__getitem__)]
        measured = [numbers[arm] for arm in order if arm in numbers]
        known = [number for number in measured if not np.isnan(row[number])]
        if not known:
            raise SelectorError(
                f"the records measured none of the selector's metrics, {', '.join(order)}, in some "
                "decision; record again with these, or fit the selector again"
            )
        found.append(known[0])
    return np.array(found)


def _outcome(method: str, grid: Grid, chosen: Numbers) -> Outcome:
    nats: Matrix = grid.of_arms(chosen)
    calls = grid.evaluation.shape[1] if method == VBS else 0
    return Outcome.of(method, calls, nats, grid)


def _notes(
    records: Records, base: Records | None, unused: Sequence[str], judged: Judged
) -> tuple[str, ...]:
    notes = []
    foreign = [
        p.network for p in (*records.networks, *(base.networks if base else ())) if p.for_tests
    ]
    if foreign:
        notes.append(f"left out, of foreign origin: {', '.join(foreign)}")
    if unused:
        notes.append(f"left out of base, being your own networks: {', '.join(unused)}")
    if ALONE not in judged.outcomes:
        notes.append(
            f"{ALONE}: not evaluated, since with two networks there is only one to learn from"
        )
    return tuple(notes)
