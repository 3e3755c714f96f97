"""The myopic composition as a plan: followed on a copy until the target is met, written down."""

from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn

from selector.data.calibration import Calibration
from selector.data.sampling import drawn_from
from selector.errors import SelectorError
from selector.network.groups import Group
from selector.planning.choice import Choice
from selector.planning.composition.compose import Step, compose_myopically
from selector.planning.composition.myopic import Myopic
from selector.planning.plan import Plan
from selector.planning.stage import Stage

Nominated = tuple[int, tuple[str, ...]]
"""Number of a channel, and the metrics that nominated it."""


def plan_myopically(
    model: nn.Module,
    calibration: Calibration,
    stage: Stage,
    myopic: Myopic,
    *,
    criterion: str,
) -> Plan:
    """The channels that the composition removes until this round's limit is met.

    The last step is cut short where fewer of its channels are enough.

    Args:
        model: The network; a copy is cut.
        calibration: What scores and candidates draw their images from.
        stage: Where the network stands, and how far this round goes.
        myopic: How the composition goes about it.
        criterion: As the plan is to name it.

    Raises:
        SelectorError: A target that cannot be met, widths that must be multiples, too few images.
    """
    if stage.widths.round_to != 1:
        raise SelectorError(
            f"round_to={stage.widths.round_to} asks for multiples, and allocation='myopic' removes "
            "one channel at a time; leave it out, or use allocation='even'"
        )
    if stage.widths.ratios:
        raise SelectorError(
            "ratios asks single groups for a share, and allocation='myopic' takes one channel at a "
            "time wherever the oracle says; leave it out, or use allocation='even'"
        )
    stage.check_reachable()
    groups = stage.groups
    least = {name: g.channels - stage.options(name)[-1] for name, g in groups.prunable.items()}
    steps = compose_myopically(
        model,
        groups,
        drawn_from(calibration),
        myopic,
        generator=torch.Generator().manual_seed(0),
        measure=stage.measure,
        least=least,
        loss=calibration.loss,
    )
    nominated, oracle_images = _followed(steps, stage)
    chosen = [group for name, group in groups.prunable.items() if name in nominated]
    choices = [_choice(group, nominated[group.name]) for group in chosen]
    return Plan.of_groups(criterion, choices, groups, oracle_images)


def _followed(steps: Iterator[Step], stage: Stage) -> tuple[dict[str, list[Nominated]], int]:
    """What the steps remove from each group until the limit is met, and the oracle's images."""
    found: dict[str, list[Nominated]] = {}
    oracle_images = 0

    def enough() -> bool:
        return stage.cost({name: len(some) for name, some in found.items()}) <= stage.limit

    while not enough():
        step = next(steps)
        oracle_images = step.oracle_forwards
        for (name, channel), metrics in zip(step.removed, step.nominated_by, strict=True):
            if not enough():
                found.setdefault(name, []).append((channel, metrics))
    return found, oracle_images


def _choice(group: Group, nominated: list[Nominated]) -> Choice:
    """One group of the plan; trusted is the metric that nominated most of what went."""
    named = Counter(metric for _, metrics in nominated for metric in metrics)
    (trusted, _), *others = named.most_common(2)
    return Choice(
        group=group.name,
        channels=group.channels,
        remove=tuple(sorted(channel for channel, _ in nominated)),
        metric=trusted,
        runner_up=others[0][0] if others else None,
        fell_back=False,
        predicted_nats=None,
        measured=None,
    )
