"""The prunable groups of a network: Torch-Pruning's dependency graph, then the law as the judge.

The only file that knows Torch-Pruning's graph. Its groups carry no names, so channels are followed
here by the qualified names of the layers. A group whose masked and physically cut networks disagree
on a probe batch is refused by name: so are the network's own outputs, found without being told.
"""

import copy
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.costs import Costs, count_costs, saved_per_channel
from selector.errors import SelectorError
from selector.groups import (
    CONVOLUTION,
    Group,
    Side,
    Slice,
    is_depthwise,
    masked,
    removable,
    temporarily_cut,
)
from selector.objective import check_finite
from selector.reading import call, evaluating, run_batch

TOLERANCE = 1e-4
"""Largest difference between masked and cut outputs, relative to the largest output (float32)."""


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
    with evaluating(model), exact_arithmetic():
        costs = _costs(model, inputs)
        candidates, refused = _traced(model, inputs)
        prunable: dict[str, Group] = {}
        with torch.no_grad():
            for group in candidates:
                reason = _broken_law(model, group, inputs)
                if reason is None:
                    prunable[group.name] = _with_costs(group, costs)
                else:
                    refused[group.name] = reason
    return Groups(MappingProxyType(prunable), MappingProxyType(refused), costs)


def retrace_groups(model: nn.Module, inputs: object, known: Groups) -> Groups:
    """The same groups after a cut: traced anew, without judging again what the law has passed."""
    with evaluating(model), exact_arithmetic():
        costs = _costs(model, inputs)
        candidates, _ = _traced(model, inputs)
    prunable = {g.name: _with_costs(g, costs) for g in candidates if g.name in known.prunable}
    return Groups(MappingProxyType(prunable), known.refused, costs)


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


def _traced(model: nn.Module, inputs: object) -> tuple[list[Group], dict[str, str]]:
    """Groups as the dependency graph has them, and those with a layer nobody can cut exactly."""
    with warnings.catch_warnings():
        # The graph warns of what it cannot follow; the law finds out what that means.
        warnings.simplefilter("ignore")
        return _follow(model, inputs)


def _follow(model: nn.Module, inputs: object) -> tuple[list[Group], dict[str, str]]:
    graph = _build_graph(model, inputs)
    names = {module: name for name, module in model.named_modules()}
    groups: list[Group] = []
    refused: dict[str, str] = {}
    visited: set[nn.Module] = set()
    for name, module in model.named_modules():
        if not isinstance(module, CONVOLUTION | nn.Linear) or module not in graph.module2node:
            continue
        if module in visited or is_depthwise(module):
            continue
        pruner = graph.get_pruner_of_module(module)
        width = pruner.get_out_channels(module)
        found = graph.get_pruning_group(module, pruner.prune_out_channels, list(range(width)))
        visited |= {d.target.module for d, _ in found if graph.is_out_channel_pruning_fn(d.handler)}
        slices, reason = _slices(graph, found, names)
        group = Group(name, width, tuple(slices), 0.0, 0.0)
        if reason is None and width < 2:
            reason = "it has a single channel"
        if reason is None and not group.consumers:
            reason = "no layer reads it: it is an output of the network"
        if reason is None:
            groups.append(group)
        else:
            refused[name] = reason
    return groups, refused


def _slices(
    graph: tp.DependencyGraph, found: tp.Group, names: Mapping[nn.Module, str]
) -> tuple[list[Slice], str | None]:
    slices: dict[tuple[str, Side], Slice] = {}
    for item in found:
        module, handler = item.dep.target.module, item.dep.handler
        if isinstance(module, nn.Parameter):
            return [], "its channels reach a bare nn.Parameter outside any layer"
        if module not in names or isinstance(module, nn.Identity):
            continue  # concatenation, reshape, addition: nothing of its own to cut
        side: Side = "out" if graph.is_out_channel_pruning_fn(handler) else "in"
        if side == "out" and graph.is_in_channel_pruning_fn(handler):
            side = "both"
        if removable(module, side) is None:
            if not any(True for _ in module.parameters(recurse=False)):
                continue
            return [], _why_not(names[module], module)
        roots = tuple(int(root) for root in item.root_idxs)
        part = Slice(names[module], side, tuple(int(i) for i in item.idxs), roots)
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            continue
        slices[part.layer, side] = part
    return list(slices.values()), None


def _why_not(name: str, layer: nn.Module) -> str:
    kind = type(layer).__name__
    if isinstance(layer, CONVOLUTION):
        return f"{kind} {name!r} has {layer.groups} groups: single channels cannot leave it"
    if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
        return f"{kind} {name!r} mixes channels: masked and cut networks would differ"
    return f"{kind} {name!r} is a layer whose channels cannot be cut exactly"


def _build_graph(model: nn.Module, inputs: object) -> tp.DependencyGraph:
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    leaves, spec = pytree.tree_flatten(inputs)
    fresh = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            return tp.DependencyGraph().build_dependency(
                model,
                example_inputs=pytree.tree_unflatten(fresh, spec),
                forward_fn=call,
                output_transform=_tensors_with_gradient,
                verbose=False,
            )
    except Exception as error:
        raise SelectorError(
            f"the network cannot be traced ({type(error).__name__}: {error}); "
            "channels are followed through autograd, so the forward pass must not run under "
            "no_grad or detach its activations"
        ) from error
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


def _tensors_with_gradient(outputs: object) -> list[Tensor]:
    found = pytree.tree_leaves(outputs)
    tensors = [leaf for leaf in found if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
    if not tensors:
        raise SelectorError("no output of the network has a gradient")
    return tensors


def _broken_law(model: nn.Module, group: Group, inputs: object) -> str | None:
    """Why masking is not cutting for this group on the probe batch, or None where it is."""
    generator = torch.Generator().manual_seed(group.channels)
    order = torch.randperm(group.channels, generator=generator).tolist()
    for count in sorted({1, max(1, int(0.4 * group.channels))}):
        channels = order[:count]
        with masked(model, group, channels):
            expected = _outputs(model, inputs)
        try:
            with temporarily_cut(model, [(group, channels)]):
                actual = _outputs(model, inputs)
        except SelectorError:
            raise
        except Exception as error:
            line = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
            return f"the network does not run without {count} of its channels ({line})"
        if [t.shape for t in actual] != [t.shape for t in expected]:
            return "an output of the network would change its shape"
        for one, other in zip(expected, actual, strict=True):
            scale = float(one.abs().max()) if one.numel() else 0.0
            gap = float((one - other).abs().max()) if one.numel() else 0.0
            if not gap <= TOLERANCE * scale + 1e-12:
                return (
                    f"masking and cutting {count} of its channels differ by {gap:.2g} "
                    f"(largest output {scale:.2g}): it is coupled in a way that is not handled"
                )
    return None


def _outputs(model: nn.Module, inputs: object) -> list[Tensor]:
    found = pytree.tree_leaves(call(model, inputs))
    return [
        copy.copy(leaf.detach()).double()
        for leaf in found
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Context without TF32, so that a difference on the probe batch is a real one."""
    with torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        benchmark=torch.backends.cudnn.benchmark,
        deterministic=torch.backends.cudnn.deterministic,
        allow_tf32=False,
    ):
        yield
