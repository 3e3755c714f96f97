"""The prunable groups of a network: candidates of its graph, then the law as the judge.

A group whose masked and physically cut networks disagree on a probe batch is refused by name: so
are the network's own outputs, found without being told.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.checks import check_model
from selector.data.forward import call, device_of, evaluating, run_batch
from selector.data.loss import check_finite
from selector.errors import SelectorError
from selector.network.costs import Costs, count_costs, saved_per_channel
from selector.network.dependency_graph import candidate_groups
from selector.network.groups import Group, masked
from selector.network.surgery import temporarily_cut
from selector.typing import Side

TOLERANCE = 1e-4
"""Largest difference between masked and cut outputs, relative to the largest output (float32)."""

TOGETHER = 8
"""Groups that are first tried at once, to find out quickly that all of them keep the law."""


@dataclass(frozen=True)
class Groups:
    """What can be pruned in a network, and what cannot, with the reason."""

    prunable: Mapping[str, Group]
    refused: Mapping[str, str]
    """Root layer -> why its channels are left alone."""
    costs: Costs

    def required(self) -> Mapping[str, Group]:
        """The prunable groups, at least one.

        Raises:
            SelectorError: There is none; the first reasons are given.
        """
        if not self.prunable:
            reasons = "; ".join(f"{name}: {why}" for name, why in list(self.refused.items())[:3])
            raise SelectorError(
                "the network has no prunable group of channels"
                + (f" ({reasons})" if reasons else " (no convolution or linear layer was traced)")
            )
        return self.prunable


def find_groups(model: nn.Module, inputs: object) -> Groups:
    """Find the groups of channels that can be removed exactly.

    Args:
        model: Any network; left exactly as found.
        inputs: A few images, as the network is called with: the probe batch of the law.

    Raises:
        SelectorError: The network cannot be run or traced with these inputs.
    """
    check_model(model)
    with evaluating(model), exact_arithmetic(model):
        costs = _costs(model, inputs)
        candidates, refused = candidate_groups(model, inputs)
        with torch.no_grad():
            broken = _broken_laws(model, candidates, inputs)
    refused |= broken
    prunable = {g.name: _with_costs(g, costs) for g in candidates if g.name not in broken}
    return Groups(MappingProxyType(prunable), MappingProxyType(refused), costs)


def retrace_groups(model: nn.Module, inputs: object, known: Groups) -> Groups:
    """The same groups after a cut: traced anew, without judging again what the law has passed.

    A group is gone when nothing more can leave it.
    """
    with evaluating(model), exact_arithmetic(model):
        costs = _costs(model, inputs)
        candidates, _ = candidate_groups(model, inputs)
    prunable = {g.name: _with_costs(g, costs) for g in candidates if _is_known(g, known)}
    return Groups(MappingProxyType(prunable), known.refused, costs)


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
        outputs = pytree.tree_leaves(run_batch(model, inputs, 0))
    for leaf in outputs:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            check_finite(leaf, 0, what="output of the network")
    return count_costs(model, inputs)


def _with_costs(group: Group, costs: Costs) -> Group:
    return dataclasses.replace(
        group,
        macs_per_channel=saved_per_channel(costs, group, "macs"),
        parameters_per_channel=saved_per_channel(costs, group, "parameters"),
    )


def _broken_laws(model: nn.Module, groups: Sequence[Group], inputs: object) -> dict[str, str]:
    """Group -> why masking it is not cutting it on the probe batch; the others keep the law.

    Groups are tried several at once, far apart in the network, since most keep it; where a few
    together break it, each is judged alone.
    """
    scale = _largest(_outputs(model, inputs))
    broken: dict[str, str] = {}
    parts = max(1, -(-len(groups) // TOGETHER))
    for part in range(parts):
        some = groups[part::parts]
        samples = [_samples(group) for group in some]
        trials = [list(zip(some, channels, strict=True)) for channels in zip(*samples, strict=True)]
        if any(_broken_by(model, removals, inputs, 1e-6 * scale) for removals in trials):
            for group in some:
                alone = ([(group, channels)] for channels in dict.fromkeys(_samples(group)))
                reasons = (_broken_by(model, removals, inputs) for removals in alone)
                reason = next((reason for reason in reasons if reason is not None), None)
                if reason is not None:
                    broken[group.name] = reason
    return broken


def _samples(group: Group) -> list[tuple[int, ...]]:
    """One channel, several, and all the others, so that no channel is let through unseen."""
    generator = torch.Generator().manual_seed(group.channels)
    order = torch.randperm(group.channels, generator=generator).tolist()
    some = max(1, int(0.4 * group.channels))
    return [tuple(order[:1]), tuple(order[:some]), tuple(order[some:])]


def _broken_by(
    model: nn.Module,
    removals: Sequence[tuple[Group, Sequence[int]]],
    inputs: object,
    least: float = 0.0,
) -> str | None:
    """Why these removals break the law; outputs no larger than `least` could not show it."""
    count = sum(len(channels) for _, channels in removals)
    with ExitStack() as stack:
        for group, channels in removals:
            stack.enter_context(masked(model, group, channels))
        expected = _outputs(model, inputs)
    if _largest(expected) < least:
        return "too little is left of the outputs to compare them"
    try:
        with temporarily_cut(model, removals):
            actual = _outputs(model, inputs)
    except Exception as error:  # Whatever the cut leads to, this group is not to be cut.
        line = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        return f"the network does not run without {count} of its channels ({line})"
    if [t.shape for t in actual] != [t.shape for t in expected]:
        return "an output of the network would change its shape"
    for one, other in zip(expected, actual, strict=True):
        scale, gap = _largest([one]), _largest([one - other])
        if not gap <= TOLERANCE * scale + 1e-12:
            return (
                f"masking and cutting {count} of its channels differ by {gap:.2g} "
                f"(largest output {scale:.2g}): it is coupled in a way that is not handled"
            )
    return None


def _largest(tensors: Sequence[Tensor]) -> float:
    return max((float(t.abs().max()) for t in tensors if t.numel()), default=0.0)


def _outputs(model: nn.Module, inputs: object) -> list[Tensor]:
    found = pytree.tree_leaves(call(model, inputs))
    return [
        copy.copy(leaf.detach()).double()
        for leaf in found
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


@contextmanager
def exact_arithmetic(model: nn.Module) -> Iterator[None]:
    """Context without TF32 or autocast: a difference on the probe batch is then a real one."""
    with (
        torch.autocast(device_of(model).type, enabled=False),
        torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled,
            benchmark=torch.backends.cudnn.benchmark,
            deterministic=torch.backends.cudnn.deterministic,
            allow_tf32=False,
        ),
    ):
        yield
