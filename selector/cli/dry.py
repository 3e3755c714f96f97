"""`--dry-run`: what a command would do, after everything that it reads has been checked."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from selector.cli.bundles import Bounds, Goal
from selector.tables import count_text

if TYPE_CHECKING:
    from torch import nn

    from selector.data.batches import Batches


def would_write(outputs: Iterable[Path | None]) -> str:
    """Which files a command would write.

    >>> would_write([Path("small.safetensors"), None])
    'would write small.safetensors; nothing was done'
    >>> would_write([None])
    'would write no file; nothing was done'
    """
    named = [str(path) for path in outputs if path is not None]
    return f"would write {', '.join(named) or 'no file'}; nothing was done"


def what_would_be_done(
    name: str,
    model: "nn.Module",
    batches: "Batches",
    goal: Goal,
    bounds: Bounds,
    outputs: Iterable[Path | None],
    rounds: int | None = None,
    *,
    repaired: bool = True,
) -> str:
    """What a pruning would do, after the network has been traced on a few images.

    Raises:
        SelectorError: What `choose` would refuse: a target, a name, a network.
    """
    from selector.data.batches import batch_size
    from selector.data.calibration import Calibration
    from selector.planning.choose import first_stage
    from selector.planning.limits import Limits
    from selector.planning.target import Target
    from selector.pruning.procedure import default_rounds

    target = Target.of(goal.targets, bounds.own)
    limits = Limits.of(**bounds.allowed)
    calibration = Calibration(batches)
    stage = first_stage(model, calibration, target, limits)
    groups, costs = stage.groups, stage.groups.costs
    asked = [f"{option} {share:g}" for option, share in goal.targets.items()]
    number = default_rounds(target, stage.widths, repaired=repaired) if rounds is None else rounds
    images = sum(batch_size(inputs, targets) for inputs, targets in calibration)
    lines = [
        f"{name}: {count_text(costs.total('macs'))} MACs, "
        f"{count_text(costs.total('parameters'))} parameters; {len(groups.prunable)} groups of "
        f"channels can be pruned, {len(groups.refused)} not",
        f"would prune to {', '.join(asked) or 'the ratios of single groups'} in {number} round"
        f"{'s' * (number != 1)}, with {images} images",
        would_write(outputs),
    ]
    return "\n".join(lines)
