"""One slow twin for every combination of the grammar: plain loops over values, then a reduction."""

from collections.abc import Callable, Mapping, Sequence

import torch

from selector.saliency.checks import Scene
from tests.reference import curvatures, mean_gradients
from tests.reference_measuring import Where, at_point, filters

Values = list[list[list[tuple[float, float, float]]]]
"""Image -> channel -> (value, gradient, curvature) of every value; weights are as of one image."""

POINTWISE: Mapping[str, Callable[[float, float, float], float]] = {
    "value": lambda x, g, h: x,
    "gradient": lambda x, g, h: g,
    "taylor": lambda x, g, h: x * g,
    "gauss_newton": lambda x, g, h: x * x * h / 2,
    "second_taylor": lambda x, g, h: x * x * h / 2 - x * g,
}

REDUCTION: Mapping[str, Callable[[Sequence[float]], float]] = {
    "sum": sum,
    "l1": lambda values: sum(abs(v) for v in values),
    "l2": lambda values: sum(v * v for v in values) ** 0.5,
    "abs_of_sum": lambda values: abs(sum(values)),
    "square_of_sum": lambda values: sum(values) ** 2,
}


def systematic(scene: Scene, name: str) -> list[float]:
    combination, _, point = name.partition("@")
    base, pointwise, reduction, *scaling = combination.split(".")
    values = of_weights(scene) if base == "weight" else of_maps(scene, point or "consumers")
    scores = [0.0] * scene.group.channels
    for image in values:
        for channel, triples in enumerate(image):
            found = [POINTWISE[pointwise](*triple) for triple in triples]
            scores[channel] += REDUCTION[reduction](found) / len(values)
    factor = scale(scene, scaling[0] if scaling else "none", scores, len(values[0][0]))
    return [score / factor for score in scores]


def of_weights(scene: Scene) -> Values:
    parts = (filters(scene), filters(scene, mean_gradients(scene)), curvatures(scene))
    return [[list(zip(*rows, strict=True)) for rows in zip(*parts, strict=True)]]


def of_maps(scene: Scene, where: Where) -> Values:
    found: Values = []
    pairs = zip(at_point(scene, where), at_point(scene, where, projected=True), strict=True)
    for image, projected in pairs:
        channels = []
        for known, curved in zip(image, projected, strict=True):
            triples = [(a, g, r * r) for (a, g), (_, r) in zip(known, curved, strict=True)]
            channels.append(triples)
        found.append(channels)
    return found


def scale(scene: Scene, scaling: str, scores: Sequence[float], values: int) -> float:
    if scaling == "cardinality":
        return values
    if scaling == "layer_l1":
        return sum(abs(score) for score in scores) or 1.0
    if scaling == "layer_l2":
        return sum(score**2 for score in scores) ** 0.5 or 1.0
    if scaling == "remaining_cardinality":
        return values * scene.group.channels
    if scaling == "weights_removed":
        return weights_removed(scene)
    assert scaling == "none"
    return 1.0


def weights_removed(scene: Scene) -> float:
    """Entries of the weights of convolutions and linear layers that go with the first channel."""
    gone: dict[str, torch.Tensor] = {}
    for part in scene.group.slices:
        layer = scene.model.get_submodule(part.layer)
        if not isinstance(layer, torch.nn.modules.conv._ConvNd | torch.nn.Linear):
            continue
        marked = gone.setdefault(part.layer, torch.zeros_like(layer.weight, dtype=torch.bool))
        dimension = 1 if part.side == "in" else 0
        if isinstance(layer, torch.nn.ConvTranspose2d):
            dimension = 1 - dimension
        for index, channel in zip(part.indices, part.channels, strict=True):
            if channel == 0:
                # A grouped convolution numbers the inputs of each of its groups from zero.
                marked.select(dimension, index % marked.shape[dimension]).fill_(True)
    return float(sum(int(marked.sum()) for marked in gone.values()))
