"""The prunable groups of a network: candidates of its graph, then the law as the judge.

A group whose masked and physically cut networks disagree on a probe batch is refused by name: so
are the network's own outputs, which nothing marks as such.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.checks import check_model
from selector.data.exclusive import one_at_a_time
from selector.data.forward import evaluating, float_tensors, run_batch
from selector.data.loss import check_finite
from selector.network.copying import check_usable, uncompiled
from selector.network.costs import Costs, count_costs, saved_per_channel
from selector.network.coupling.dependency_graph import candidate_groups
from selector.network.coupling.idle import with_idle_layers
from selector.network.coupling.law import LawCheck, exact_arithmetic, judging, largest
from selector.network.coupling.ties import torn_ties
from selector.network.groups import Group, masked
from selector.network.hooks import without_checkpoints
from selector.network.prunable import Groups as Groups
from selector.network.surgery import temporarily_cut
from selector.typing import Side

TOGETHER = 16
"""Groups that are first tried at once, to find out quickly that all of them keep the law."""


@one_at_a_time
def find_groups(model: nn.Module, inputs: object) -> Groups:
    """Find the groups of channels that can be removed exactly.

    Args:
        model: Any network; left exactly as found.
        inputs: A few images, as the network is called with: the probe batch of the law.

    Raises:
        SelectorError: The network cannot be run or traced with these inputs.
    """
    check_model(model)
    model = uncompiled(model)
    check_usable(model)
    with torch.inference_mode(False), without_checkpoints():
        inputs = _usable(inputs)
        costs, candidates, refused = _traced(model, inputs)
        with judging(model, inputs) as judge:
            refused |= _broken_laws(judge, candidates)
    prunable = {g.name: _with_costs(g, costs) for g in candidates if g.name not in refused}
    return Groups(MappingProxyType(prunable), MappingProxyType(refused), costs)


def retrace_groups(model: nn.Module, inputs: object, known: Groups) -> Groups:
    """The groups of a network after a cut, without judging again what the law has passed.

    A group is gone when nothing more can leave it.
    """
    with torch.inference_mode(False), without_checkpoints():
        costs, candidates, _ = _traced(model, _usable(inputs))
    prunable = {g.name: _with_costs(g, costs) for g in candidates if _is_known(g, known)}
    return Groups(MappingProxyType(prunable), known.refused, costs)


def _usable(inputs: object) -> object:
    """The inputs as tensors that autograd can follow."""

    def copied(leaf: object) -> object:
        return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf

    found: object = pytree.tree_map(copied, inputs)
    return found


def _traced(model: nn.Module, inputs: object) -> tuple[Costs, list[Group], dict[str, str]]:
    """Costs, candidates for pruning, and what is refused before the law is asked."""
    with evaluating(model), exact_arithmetic(model):
        costs = _costs(model, inputs)
        candidates, refused = candidate_groups(model, inputs)
        candidates, idle = with_idle_layers(model, inputs, candidates)
    refused |= idle | torn_ties(model, candidates)
    return costs, [group for group in candidates if group.name not in refused], refused


def _is_known(group: Group, known: Groups) -> bool:
    """Whether the law has passed it: the group of that name, through the same layers.

    A grouped convolution that is down to one input and one output in each group has become
    depthwise; what its two groups had left would come back as one, of other channels.
    """
    before = known.prunable.get(group.name)
    return before is not None and _places(group) == _places(before)


def _places(group: Group) -> set[tuple[str, Side]]:
    return {(part.layer, part.side) for part in group.slices}


def _costs(model: nn.Module, inputs: object) -> Costs:
    with torch.no_grad():
        outputs = float_tensors(run_batch(model, inputs, 0))
    for tensor in outputs:
        check_finite(tensor, 0, what="output of the network")
    return count_costs(model, inputs)


def _with_costs(group: Group, costs: Costs) -> Group:
    return dataclasses.replace(
        group,
        macs_per_channel=saved_per_channel(costs, group, "macs"),
        parameters_per_channel=saved_per_channel(costs, group, "parameters"),
    )


def _broken_laws(judge: LawCheck, groups: Sequence[Group]) -> dict[str, str]:
    """Group -> why masking it is not cutting it on the probe batch; the others keep the law.

    Groups are tried several at once, far apart in the network, since most keep it; where a few
    together break it, they are halved until the culprits are alone.
    """
    parts = max(1, -(-len(groups) // TOGETHER))
    broken: dict[str, str] = {}
    for part in range(parts):
        broken |= _broken_among(judge, groups[part::parts])
    return broken


def _broken_among(judge: LawCheck, groups: Sequence[Group]) -> dict[str, str]:
    if len(groups) < 2:
        return {group.name: reason for group in groups if (reason := _broken_alone(judge, group))}
    samples = [_samples(group) for group in groups]
    trials = [list(zip(groups, channels, strict=True)) for channels in zip(*samples, strict=True)]
    if not any(_broken_by(judge, removals, alone=False) for removals in trials):
        return {}
    middle = len(groups) // 2
    return _broken_among(judge, groups[:middle]) | _broken_among(judge, groups[middle:])


def _broken_alone(judge: LawCheck, group: Group) -> str | None:
    alone = ([(group, channels)] for channels in dict.fromkeys(_samples(group)))
    reasons = (_broken_by(judge, removals, alone=True) for removals in alone)
    return next((reason for reason in reasons if reason is not None), None)


def _samples(group: Group) -> list[tuple[int, ...]]:
    """One channel, several, and all the others, so that no channel is let through unseen.

    They are drawn by the group's name: two groups that lose the same channels would hide that they
    depend on each other.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()))
    order = torch.randperm(group.channels, generator=generator).tolist()
    some = max(1, int(0.4 * group.channels))
    return [tuple(order[:1]), tuple(order[:some]), tuple(order[some:])]


def _broken_by(
    judge: LawCheck, removals: Sequence[tuple[Group, Sequence[int]]], *, alone: bool
) -> str | None:
    """Why these removals break the law.

    Of several groups at once nothing but rounding is forgiven, since what one of them changes may
    be small; and where too little is left of the outputs, nothing could be seen.
    """
    count = sum(len(channels) for _, channels in removals)
    with ExitStack() as stack:
        for group, channels in removals:
            stack.enter_context(masked(judge.model, group, channels))
        expected = judge.outputs()
    if not alone and largest(expected) < 1e-6 * largest(judge.whole):
        return "too little is left of the outputs to compare them"
    try:
        with temporarily_cut(judge.model, removals):
            actual = judge.outputs()
    except Exception as error:  # Whatever the cut leads to, this group is not to be cut.
        line = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        return f"the network does not run without {count} of its channels ({line})"
    gap = judge.difference(expected, actual, **({} if alone else {"share": 0.0}))
    if gap is None or gap.startswith("an output"):
        return gap
    return (
        f"masking and cutting {count} of its channels {gap}: it is coupled in a way that is not "
        "handled"
    )
