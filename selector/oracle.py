"""The true loss change of removing channel sets: the ground truth of labels and of verification."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from selector.errors import SelectorError
from selector.groups import ChannelSet, Group, find_group, masked
from selector.objective import Loss, Objective, check_finite
from selector.reading import Batches, call, check_repeatable, evaluating, probe_inputs, read
from selector.tracing import find_groups


@dataclass(frozen=True)
class LossChange:
    """What removing a channel set does to the mean loss."""

    nats: float
    """Mean loss after removal minus before; in nats for cross-entropy."""
    standard_error: float
    """Of that mean, from the differences paired image by image."""
    images: int


def loss_changes(
    model: nn.Module,
    batches: Batches,
    group: Group | str,
    channel_sets: Sequence[ChannelSet],
    *,
    loss: Loss | None = None,
) -> list[LossChange]:
    """Measure what removing each of some channel sets of one group does to the loss.

    Equal sets are measured once. Each batch is read once and sees all the candidates.

    Args:
        model: The network; left exactly as found.
        batches: Re-iterable of (inputs, targets) that gives the same images on every reading.
        group: A group of `find_groups`, or its name.
        channel_sets: Channels to remove, one sequence for each candidate.
        loss: Mean loss of a batch; cross-entropy by default.

    Returns:
        One `LossChange` for each channel set, in the order asked.

    Raises:
        SelectorError: Unknown group; a channel out of range, repeated, or all of them; batches
            that change between readings; a loss that is not finite.
    """
    if isinstance(group, str):
        found = find_groups(model, probe_inputs(model, batches)).required()
        group = find_group(found, group)
    return measure(model, batches, {group: channel_sets}, loss=loss)[group]


def measure(
    model: nn.Module,
    batches: Batches,
    candidates: Mapping[Group, Sequence[ChannelSet]],
    *,
    loss: Loss | None = None,
    progress: bool = False,
) -> dict[Group, list[LossChange]]:
    """`loss_changes` of several groups over one reading of the data; a progress bar on request."""
    check_repeatable(batches)
    objective = Objective(loss)
    sets = {group: [group.checked(s) for s in asked] for group, asked in candidates.items()}
    distinct = [(group, s) for group, asked in sets.items() for s in dict.fromkeys(asked) if s]
    differences: dict[tuple[Group, tuple[int, ...]], list[Tensor]] = {key: [] for key in distinct}
    images = 0
    with torch.no_grad(), evaluating(model):
        for number, (inputs, targets) in enumerate(read(model, batches)):
            before = objective.each(call(model, inputs), targets)
            check_finite(before, number)
            images += len(before)
            for group, channels in tqdm(
                distinct, f"oracle, batch {number}", disable=not progress, leave=False, unit="set"
            ):
                with masked(model, group, channels):
                    after = objective.each(call(model, inputs), targets)
                check_finite(after, number)
                differences[group, channels].append((after - before).cpu())
    if images < 2:
        raise SelectorError("one image has no standard error; pass at least two to the oracle")
    changes = {key: _summary(torch.cat(parts)) for key, parts in differences.items()}
    nothing = LossChange(0.0, 0.0, images)
    return {
        group: [changes[group, s] if s else nothing for s in asked] for group, asked in sets.items()
    }


def _summary(differences: Tensor) -> LossChange:
    count = len(differences)
    return LossChange(float(differences.mean()), float(differences.std()) / count**0.5, count)
