"""Torch-Pruning's own pruner on the same networks: local magnitudes, the same share of the MACs.

It is told what its examples tell it: which layers give the outputs, how many heads attention has,
and which numbers of attention modules and ViTs must follow. The ratio is searched for, each time on
a fresh copy.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torchvision.models import VisionTransformer

from selector.network.surgery import Cut
from selector.typing import Side
from training.benchmarks.coverage.checks import Build, macs_of
from training.benchmarks.coverage.subject import Subject, energy

TRIES = 6
NEAR = 0.05
"""A share of the MACs this far below what is asked is near enough."""


@dataclass(frozen=True, eq=False)
class RivalCut:
    """What Torch-Pruning made of a network."""

    model: nn.Module
    cuts: tuple[Cut, ...]
    """In positions of the unpruned network."""
    kept: float
    """Share of the MACs."""


def pruned_by_torch_pruning(model: nn.Module, subject: Subject, keep_macs: float) -> RivalCut:
    """Prune copies at several ratios; the one with the most MACs left that are not too many.

    Raises:
        Exception: Whatever Torch-Pruning raises, or `ValueError` where it reaches no such share.
    """
    whole = macs_of(model, subject)
    low, high, ratio = 0.0, 0.95, 0.3
    best: RivalCut | None = None
    lowest = 1.0
    for _ in range(TRIES):
        found = _at(model, subject, ratio, whole)
        lowest = min(lowest, found.kept)
        if found.kept <= keep_macs:
            best, high = found, ratio
            if found.kept > keep_macs - NEAR:
                break
        else:
            low = ratio
        ratio = (low + high) / 2
    if best is None:
        raise ValueError(f"it leaves {lowest:.1%} of the MACs at least")
    return best


def _at(model: nn.Module, subject: Subject, ratio: float, whole: float) -> RivalCut:
    small = copy.deepcopy(model).eval()
    names = {id(module): name for name, module in small.named_modules()}
    widths = {name: _widths(module) for name, module in small.named_modules()}
    pruner = tp.pruner.MagnitudePruner(
        small,
        subject.inputs(2, 0),
        tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=_outputs(small, subject),
        num_heads=_heads(small),
        in_channel_groups={},
        out_channel_groups={},
        forward_fn=lambda network, images: network(images),
        output_transform=lambda outputs: energy(outputs, None),
    )
    gone: dict[tuple[str, Side], set[int]] = defaultdict(set)
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            _note(dependency, indices, names, widths, gone)
        group.prune()
    _follow(small, pruner.num_heads)
    cuts = tuple(Cut(name, side, tuple(sorted(lost))) for (name, side), lost in gone.items())
    return RivalCut(small, cuts, macs_of(small, subject) / whole)


def _note(
    dependency: Any,
    indices: list[int],
    names: dict[int, str],
    widths: dict[str, tuple[list[int], list[int]]],
    gone: dict[tuple[str, Side], set[int]],
) -> None:
    """Write down what a step takes from a layer, in positions that it had at first."""
    layer = dependency.target.module
    name = names.get(id(layer))
    if name is None:  # A parameter, or an operation.
        return
    outwards = dependency.handler.__name__ == "prune_out_channels"
    both = not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) or _depthwise(layer)
    side: Side = "both" if both else ("out" if outwards else "in")
    left = widths[name][0 if outwards or both else 1]
    if not left:
        return
    taken = {left[index] for index in indices if index < len(left)}
    gone[name, side] |= taken
    left[:] = [index for index in left if index not in taken]


def _widths(module: nn.Module) -> tuple[list[int], list[int]]:
    """Positions of a layer's outputs and inputs that are left, none where it has no channels."""
    for out, into in (
        ("out_channels", "in_channels"),
        ("out_features", "in_features"),
        ("num_features", "num_features"),
        ("num_channels", "num_channels"),
        ("num_parameters", "num_parameters"),
    ):
        one, other = (getattr(module, name, None) for name in (out, into))
        if isinstance(one, int) and isinstance(other, int):
            return list(range(one)), list(range(other))
    shape = getattr(module, "normalized_shape", ())
    return (list(range(shape[-1])), list(range(shape[-1]))) if shape else ([], [])


def _depthwise(layer: nn.Module) -> bool:
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == getattr(layer, "out_channels", 0)


def _outputs(model: nn.Module, subject: Subject) -> list[nn.Module]:
    """The layers that give the network's outputs: named ones, else those as wide as the classes."""
    modules = dict(model.named_modules())
    if named := [modules[name] for name in subject.outputs if name in modules]:
        return named
    if subject.detector:
        heads = (
            "cls_score",
            "bbox_pred",
            "cls_logits",
            "bbox_reg",
            "bbox_ctrness",
            "mask_fcn_logits",
        )
        return [m for name, m in modules.items() if any(head in name for head in heads)]
    wide = (nn.Linear, nn.modules.conv._ConvNd)
    return [m for m in modules.values() if isinstance(m, wide) and _width(m) == subject.classes]


def _width(layer: nn.Module) -> int:
    found: int = getattr(layer, "out_features", getattr(layer, "out_channels", 0))
    return found


def _follow(model: nn.Module, heads: Mapping[nn.Module, int]) -> None:
    """Set the numbers that attention and ViTs keep of their widths, as its examples do by hand."""
    for module in model.modules():
        projection = getattr(module, "qkv", None)
        if isinstance(projection, nn.Linear) and projection in heads:
            kept = vars(module)
            kept["num_heads"] = heads[projection]
            kept["head_dim"] = projection.out_features // (3 * heads[projection])
            if "attn_dim" in kept:
                kept["attn_dim"] = projection.out_features // 3
        if isinstance(module, VisionTransformer):
            module.hidden_dim = module.conv_proj.out_channels


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """Packed projections with their numbers of heads."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        projection, heads = getattr(module, "qkv", None), getattr(module, "num_heads", None)
        if isinstance(module, nn.MultiheadAttention):
            found[module] = module.num_heads
        if isinstance(projection, nn.Linear) and isinstance(heads, int):
            found[projection] = heads
    return found


def save(model: nn.Module, path: Path) -> None:
    """Write a network as Torch-Pruning advises: the object, else its state with all widths."""
    try:
        torch.save(model, path)
    except Exception:
        torch.save(tp.state_dict(model), path)


def load(build: Build, path: Path) -> nn.Module:
    """Read it back, into the unpruned network where only its state was written."""
    found = torch.load(path, weights_only=False)
    if isinstance(found, nn.Module):
        return found
    back: nn.Module = tp.load_state_dict(build(), found)
    return back
