"""The prunable groups of a network: candidates of its graph, then the law as the judge.

A group whose masked and physically cut networks disagree on a probe batch is refused by name: so
are the network's own outputs, which nothing marks as such.
"""

import dataclasses
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.batches import batch_size, rows
from selector.data.checks import check_model
from selector.data.exclusive import one_at_a_time
from selector.data.forward import evaluating, float_tensors, run_batch, runs_on
from selector.data.loss import check_finite
from selector.data.own_forward import Forward
from selector.errors import SelectorError
from selector.network.copying import check_usable, uncompiled
from selector.network.costs import Costs, count_costs, saved_per_channel
from selector.network.coupling.law import exact_arithmetic, judging
from selector.network.discovery import Discovery
from selector.network.groups import Group
from selector.network.hooks import without_checkpoints
from selector.network.prunable import Groups as Groups

PROBED = 2
"""Images on which groups are found and judged."""


@one_at_a_time
def find_groups(model: nn.Module, inputs: object, *, forward: Forward | None = None) -> Groups:
    """Find the groups of channels that can be removed exactly.

    Args:
        model: Any network; left exactly as found.
        inputs: A few images, as the network is called with: the probe batch of the law. With
            `forward`, a batch as that reads it.
        forward: Runs the network on a batch, as for `prune`.

    Raises:
        SelectorError: The network cannot be run or traced with these inputs.
    """
    check_model(model)
    model = uncompiled(model)
    check_usable(model)
    with torch.inference_mode(False), without_checkpoints():
        inputs = _few(model, _usable(inputs))
        with evaluating(model), exact_arithmetic(model):
            before = pytree.tree_map(_copied, inputs)
            costs = _costs(model, inputs)
            _check_unchanged(before, inputs)
            candidates = Discovery(model, inputs)
        with judging(model, inputs) as judge:
            found, refused = candidates.judged(judge)
    prunable = {group.name: _with_costs(group, costs) for group in found}
    return Groups(MappingProxyType(prunable), MappingProxyType(refused), costs)


def retrace_groups(model: nn.Module, inputs: object, known: Groups) -> Groups:
    """The groups of a network after a cut, without judging again what the law has passed.

    A group is gone when nothing more can leave it.
    """
    with torch.inference_mode(False), without_checkpoints():
        inputs = _few(model, _usable(inputs))
        with evaluating(model), exact_arithmetic(model):
            costs = _costs(model, inputs)
            candidates = Discovery(model, inputs)
    prunable = {
        group.name: _with_costs(group, costs)
        for group in candidates.known(
            list(known.prunable.values()), lambda group: _is_known(group, known)
        )
    }
    return Groups(MappingProxyType(prunable), known.refused, costs)


def _usable(inputs: object) -> object:
    """The inputs as tensors that autograd can follow."""

    def copied(leaf: object) -> object:
        return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf

    found: object = pytree.tree_map(copied, inputs)
    return found


def _copied(leaf: object) -> object:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _check_unchanged(before: object, after: object) -> None:
    """Refuse a network that writes over its inputs: each forward pass would see others."""
    for one, other in zip(pytree.tree_leaves(before), pytree.tree_leaves(after), strict=True):
        if isinstance(one, Tensor) and not torch.equal(one, other):
            raise SelectorError(
                "the network changes its inputs in place, so a second forward pass sees others; "
                "begin its forward pass with a copy, as in images = images.clone()"
            )


def _few(model: nn.Module, inputs: object) -> object:
    """Two of the images, where the network runs on them: channels lie in them as in all."""
    try:
        images = batch_size(inputs)
        few = rows(inputs, 0, PROBED, images)
    except SelectorError:  # No common length to count images by.
        return inputs
    return few if images > PROBED and runs_on(model, few, PROBED) else inputs


def _is_known(group: Group, known: Groups) -> bool:
    """Whether the law has passed it: the group of that name, through the same layers.

    A grouped convolution that is down to one input and one output in each group has become
    depthwise; what its two groups had left would come back as one, of other channels.
    """
    before = known.prunable.get(group.name)
    if before is None or group.reading != before.reading:
        return False
    return group.sides == before.sides


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
