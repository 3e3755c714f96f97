"""All rounds of a pruning as one plan, in the channel numbers of the unpruned network."""

from collections.abc import Mapping, Sequence

from selector.network.surgery import cuts_of
from selector.network.tracing import Groups
from selector.planning.choice import Choice
from selector.planning.plan import Goal, Plan, renumbered
from selector.typing import Interval


def combined(
    plans: Sequence[Plan],
    first: Groups,
    last: Groups,
    *,
    criterion: str = "",
    goal: Goal | None = None,
) -> Plan:
    """All rounds as one plan, in the channel numbers of the network before the first.

    Args:
        plans: Of the rounds, each in the channel numbers that the network had then.
        first: The groups before the first round.
        last: The groups after the last.
        criterion: As the plan is to name it where there was no round; else the rounds say.
        goal: What was asked of all rounds, and what there is now.
    """
    kept = {name: list(range(group.channels)) for name, group in first.prunable.items()}
    rows: dict[str, list[Choice]] = {}
    for plan in plans:
        for choice in plan.choices:
            gone = set(choice.remove)
            rows.setdefault(choice.group, []).append(choice)
            kept[choice.group] = [c for i, c in enumerate(kept[choice.group]) if i not in gone]
    choices = [_merged(rows[name], first, kept) for name in first.prunable if name in rows]
    removals = [(first.prunable[choice.group], choice.remove) for choice in choices]
    return Plan(
        criterion=", then ".join(dict.fromkeys(plan.criterion for plan in plans)) or criterion,
        choices=tuple(choices),
        macs_before=first.costs.total("macs"),
        macs_after=last.costs.total("macs"),
        parameters_before=first.costs.total("parameters"),
        parameters_after=last.costs.total("parameters"),
        refused=dict(first.refused),
        oracle_images=sum(plan.oracle_images for plan in plans),
        goal=goal,
        warnings=tuple(dict.fromkeys(text for plan in plans for text in plan.warnings)),
        cuts=cuts_of(removals),
        renumbered=renumbered(first, choices),
    )


def _merged(rows: Sequence[Choice], first: Groups, kept: Mapping[str, list[int]]) -> Choice:
    """One group over all rounds; trusted is the metric that removed most, the latest of equals."""
    name = rows[0].group
    removed: dict[str, int] = {}
    for row in reversed(rows):
        removed[row.metric] = removed.get(row.metric, 0) + len(row.remove)
    trusted = max(removed, key=removed.__getitem__)
    last = next(row for row in reversed(rows) if row.metric == trusted)
    predicted = [row.predicted_nats for row in rows if row.predicted_nats is not None]
    channels = first.prunable[name].channels
    return Choice(
        group=name,
        channels=channels,
        remove=tuple(sorted(set(range(channels)) - set(kept[name]))),
        metric=trusted,
        runner_up=last.runner_up,
        fell_back=last.fell_back,
        predicted_nats=sum(predicted) if len(predicted) == len(rows) else None,
        measured=None,
        predicted_interval=_summed([row.predicted_interval for row in rows]),
        asked=rows[-1].asked,
        explanation=last.explanation,
    )


def _summed(intervals: Sequence[Interval | None]) -> Interval | None:
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(intervals):
        return None
    return sum(low for low, _ in known), sum(high for _, high in known)
