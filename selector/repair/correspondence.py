"""Which channels of the unpruned network the pruned one still has, layer by layer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.fx import GraphModule

from selector.data.forward import evaluating
from selector.errors import SelectorError
from selector.network.copying import copy_of
from selector.network.layers import CONVOLUTION, NORMALISATION, layer_width
from selector.network.surgery import Cut

Kept = Mapping[str, Sequence[int]]
"""Layer -> output positions of the unpruned network that are left, in their order now."""

History = Sequence[Any]
"""Steps of Torch-Pruning: (name of a layer, whether it lost outputs, indices)."""

_SAME = ("kernel_size", "stride", "padding", "dilation", "transposed", "padding_mode")


def kept_after_cuts(original: nn.Module, cuts: Iterable[Cut]) -> dict[str, tuple[int, ...]]:
    """What cuts leave of every layer's outputs.

    Args:
        original: The unpruned network.
        cuts: In its positions, as `PruneResult.cuts` has them.

    Raises:
        SelectorError: A layer that the network does not have.
    """
    kept = {}
    for cut in cuts:
        if cut.side in ("out", "both"):
            gone = set(cut.indices)
            width = layer_width(_layer(original, cut.layer), cut.side)
            kept[cut.layer] = tuple(i for i in range(width) if i not in gone)
    return kept


def is_history(kept: object) -> TypeGuard[History]:
    """Whether something is a history of Torch-Pruning: names, sides and indices."""
    return (
        isinstance(kept, Sequence)
        and len(kept) > 0
        and all(isinstance(one, list | tuple) and len(one) == 3 for one in kept)
        and all(isinstance(one[0], str) and isinstance(one[1], bool) for one in kept)
    )


def kept_after_history(
    original: nn.Module, history: History, inputs: object, *, pruned: nn.Module | None = None
) -> dict[str, tuple[int, ...]]:
    """What a pruning by Torch-Pruning left of every layer's outputs.

    The history is replayed on a copy whose layers number their outputs. Torch-Pruning 1.6 notes a
    step twice where `group.prune(idxs)` is called with indices; where the history as it stands does
    not lead to the pruned network, repeated steps count once.

    Args:
        original: The unpruned network.
        history: What `pruner.pruning_history()` or `DependencyGraph.pruning_history()` returned.
        inputs: What the network is called with, for Torch-Pruning's tracing.
        pruned: What the pruning left, for the comparison of widths.

    Raises:
        SelectorError: The history is of another network.
    """
    fault = ""
    for steps in (list(history), _once(history)):
        try:
            kept = _replayed(original, steps, inputs)
        except (AttributeError, IndexError, RuntimeError, ValueError, TypeError) as error:
            fault = f" ({type(error).__name__}: {error})"
            continue
        if pruned is None or _has_widths(pruned, kept):
            return kept
    raise SelectorError(
        f"the history of Torch-Pruning does not lead from original to pruned{fault}; pass the "
        "history of this very pruning, and the network as it was before it"
    )


def _once(history: History) -> list[Any]:
    """The steps of a history, each that is repeated at once only once."""
    steps = list(history)
    return [step for n, step in enumerate(steps) if n == 0 or tuple(step) != tuple(steps[n - 1])]


def _has_widths(pruned: nn.Module, kept: Kept) -> bool:
    """Whether a network has as many outputs in every layer as a history leaves."""
    layers = dict(pruned.named_modules())
    return all(
        name in layers
        and (dimension := _output_dimension(layers[name])) is not None
        and layers[name].state_dict()["weight"].shape[dimension] == len(positions)
        for name, positions in kept.items()
    )


def _replayed(
    original: nn.Module, history: list[Any], inputs: object
) -> dict[str, tuple[int, ...]]:
    """Output positions that are left of every layer after a history."""
    numbered = copy_of(original)
    for layer in numbered.modules():
        weight = dict(layer.named_parameters(recurse=False)).get("weight")
        dimension = _output_dimension(layer)
        if weight is not None and dimension is not None:
            numbers = torch.arange(weight.shape[dimension]).to(weight)
            shape = [-1 if d == dimension else 1 for d in range(weight.ndim)]
            weight.data = numbers.view(shape).expand_as(weight).clone()
    with evaluating(numbered):
        graph = tp.DependencyGraph().build_dependency(numbered, example_inputs=inputs)
        graph.load_pruning_history(history)
    kept = {}
    for name, layer in numbered.named_modules():
        weight = dict(layer.named_parameters(recurse=False)).get("weight")
        dimension = _output_dimension(layer)
        if weight is not None and dimension is not None:
            numbers = (
                weight.detach().movedim(dimension, 0).reshape(weight.shape[dimension], -1)[:, 0]
            )
            if not isinstance(layer, CONVOLUTION) or not layer.transposed or layer.groups == 1:
                kept[name] = tuple(int(n) for n in numbers.tolist())
    return kept


def _output_dimension(layer: nn.Module) -> int | None:
    if isinstance(layer, CONVOLUTION):
        return 1 if layer.transposed else 0
    return 0 if isinstance(layer, (nn.Linear, NORMALISATION, nn.PReLU)) else None


def kept_positions_of(
    original: nn.Module, pruned: nn.Module, kept: Kept | None
) -> dict[str, Tensor]:
    """For every convolution, linear layer and BatchNorm, the outputs that are left.

    Raises:
        SelectorError: The networks do not belong together; the first layer that differs is named.
    """
    known = dict(kept or {})
    ours, theirs = dict(pruned.named_modules()), dict(original.named_modules())
    if lacking := next((n for n in known if n not in theirs), None):
        raise SelectorError(
            f"kept names {lacking!r}, which the unpruned network does not have; pass the cuts of "
            "this very network"
        )
    for name in ours:
        if name not in theirs:
            raise _strangers(name, "the unpruned network has no such layer")
    found = {}
    for name, layer in theirs.items():
        if name not in ours:
            raise _strangers(name, "the pruned network has no such layer")
        if _kind(layer) is not _kind(ours[name]):
            kinds = f"{type(layer).__name__} and {type(ours[name]).__name__}"
            raise _strangers(name, f"it is a {kinds}")
        if isinstance(layer, (CONVOLUTION, nn.Linear, NORMALISATION)):
            positions = _positions(name, layer, ours[name], known.get(name))
            found[name] = torch.tensor(positions, dtype=torch.long)
    return found


def _kind(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer; every copy of a graph by torch.fx has a class of its own."""
    return GraphModule if isinstance(layer, GraphModule) else type(layer)


def _positions(
    name: str, layer: nn.Module, ours: nn.Module, kept: Sequence[int] | None
) -> tuple[int, ...]:
    for setting in _SAME:
        if isinstance(layer, CONVOLUTION) and getattr(layer, setting) != getattr(ours, setting):
            raise _strangers(
                name, f"its {setting} is {getattr(layer, setting)} and {getattr(ours, setting)}"
            )
    width, left = layer_width(layer, "out"), layer_width(ours, "out")
    if kept is None:
        if width != left:
            raise SelectorError(
                f"layer {name!r} has {left} outputs of {width}, and nothing says which; pass kept: "
                "the PruneResult, its cuts, or positions for every layer"
            )
        return tuple(range(width))
    positions = tuple(int(i) for i in kept)
    if len(positions) != left:
        raise _strangers(name, f"{len(positions)} outputs are said to be left, it has {left}")
    if len(set(positions)) < left or not all(0 <= i < width for i in positions):
        raise _strangers(name, f"the outputs said to be left are not {left} of its {width}")
    return positions


def _strangers(name: str, why: str) -> SelectorError:
    return SelectorError(
        f"the unpruned and the pruned network do not belong together: layer {name!r}: {why}; pass "
        "the network that was pruned and what pruning made of it"
    )


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise SelectorError(
            f"the network has no layer {name!r}; these cuts belong to another network"
        ) from None
