"""Scores under every metric, and their comparison with the slow twins."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from selector.network.groups import Group
from selector.network.tracing import find_groups
from selector.saliency.checks import Scene
from selector.saliency.registry import METRICS
from selector.saliency.scoring import Scores, needs_of, score_signals
from selector.statistics.collect import measure_signals
from tests.networks import Small
from tests.reference import singles, slow

REAL = [name for name in METRICS if name != "random"]
Batches = list[tuple[Tensor, Tensor]]


_GROUPS: dict[tuple[object, ...], Mapping[str, Group]] = {}


def groups_of(model: nn.Module, images: Tensor) -> Mapping[str, Group]:
    """The prunable groups; of networks that differ in their weights alone they are traced once."""
    if type(model) is not Small:
        return find_groups(model, images).prunable
    key = (repr(model), model.style, images.shape[1:], images.dtype)
    if key not in _GROUPS:
        _GROUPS[key] = find_groups(model, images).prunable
    return _GROUPS[key]


def scores_of(
    model: nn.Module,
    batches: Batches,
    names: Iterable[str] = METRICS,
    groups: Iterable[str] | None = None,
    **options: object,
) -> Scores:
    """Scores under every metric of these that a group can have, expensive ones too."""
    found = groups_of(model, batches[0][0])
    chosen = {name: group for name, group in found.items() if groups is None or name in groups}
    needs = needs_of(names)
    return score_signals(measure_signals(model, batches, chosen, needs=needs, **options), names)  # type: ignore[arg-type]


def close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    scale = max(float(other.abs().max()), 1e-12)
    return float((one - other).abs().max()) <= tolerance * scale


def check_twins(model: nn.Module, batches: Batches, scores: Scores, **options: object) -> None:
    groups = groups_of(model, batches[0][0])
    for name, found in scores.items():
        scene = Scene(model, groups[name], singles(batches), **options)  # type: ignore[arg-type]
        for metric, values in found.items():
            if metric != "random":
                expected = torch.tensor(slow(scene, metric), dtype=torch.float64)
                assert close(values, expected, 1e-5), (name, metric, values, expected)
