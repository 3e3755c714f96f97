"""Slow twins of every metric, in loops over images and channels, as the papers write them.

Independent of the fast path: one image at a time, a gate or an additive probe at the measuring
points instead of gradient hooks, and plain backward passes on a copy for the weights.
"""

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from selector.network.tracing import find_groups
from selector.saliency.checks import Scene
from tests.reference_measuring import (
    Filters,
    at_point,
    consumer_maps,
    filters,
    gate_effects,
    gradients,
    gradients_by_call,
    read_by_consumers,
)

Twin = Callable[[Scene], list[float]]


def singles(batches: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))]


def mean_over_images(
    scene: Scene, value: Callable[[list[tuple[float, float]]], float]
) -> list[float]:
    """Mean over images of a function of one image's (activation, gradient) at every position."""
    images = at_point(scene)
    return [
        sum(value(image[channel]) for image in images) / len(images)
        for channel in range(scene.group.channels)
    ]


def mean_over_positions(scene: Scene, value: Callable[[float], float]) -> list[float]:
    means = []
    for channel in range(scene.group.channels):
        values = [value(a) for image in at_point(scene) for a, _ in image[channel]]
        means.append(sum(values) / len(values))
    return means


def mean_of_effects(scene: Scene, value: Callable[[float], float]) -> list[float]:
    """Mean over images of a function of d loss / d gate."""
    effects = gate_effects(scene)
    return [
        sum(value(effect[channel]) for effect in effects) / len(effects)
        for channel in range(scene.group.channels)
    ]


# Weights.


def l1(scene: Scene) -> list[float]:
    return [sum(abs(w) for w in row) for row in filters(scene)]


def l2(scene: Scene) -> list[float]:
    return [norm(row) for row in filters(scene)]


def norm(row: Sequence[float]) -> float:
    return float(sum(w * w for w in row) ** 0.5)


def consumer_norm(scene: Scene) -> list[float]:
    return [
        sum(abs(w) for weights in inputs for w in weights) for inputs in read_by_consumers(scene)
    ]


def group_l2(scene: Scene) -> list[float]:
    pairs = zip(filters(scene), read_by_consumers(scene), strict=True)
    return [norm([*row, *(w for weights in inputs for w in weights)]) for row, inputs in pairs]


def batchnorm_scale(scene: Scene) -> list[float]:
    total = [0.0] * scene.group.channels
    for part in scene.group.slices:
        layer = scene.model.get_submodule(part.layer)
        if isinstance(layer, nn.BatchNorm2d):
            for index, channel in zip(part.indices, part.channels, strict=True):
                total[channel] += abs(float(layer.weight.detach()[index]))
    return total


def fpgm(scene: Scene) -> list[float]:
    rows = filters(scene)
    return [
        sum(norm([a - b for a, b in zip(row, other, strict=True)]) for other in rows)
        for row in rows
    ]


def whc(scene: Scene) -> list[float]:
    rows = filters(scene)
    scores = []
    for channel, row in enumerate(rows):
        total = 0.0
        for other_channel, other in enumerate(rows):
            if other_channel != channel and norm(row) > 0 and norm(other) > 0:
                product = sum(a * b for a, b in zip(row, other, strict=True))
                cosine = product / (norm(row) * norm(other))
                total += norm(other) * (1 - abs(cosine))
        scores.append(norm(row) * total)
    return scores


def lamp(scene: Scene) -> list[float]:
    squares = [norm(row) ** 2 for row in filters(scene)]
    return [square / sum(other for other in squares if other >= square) for square in squares]


def synflow(scene: Scene) -> list[float]:
    model = copy.deepcopy(scene.model).double().eval()
    for tensor in model.state_dict(keep_vars=True).values():
        tensor.data = tensor.data.abs()
    images = torch.ones_like(scene.images[0][0], dtype=torch.float64)
    model.zero_grad(set_to_none=True)
    model.requires_grad_(True)(images).sum().backward()
    weights = {name: model.get_submodule(name).weight for name in scene.group.producers}
    flows = {name: weight.detach() * weight.grad for name, weight in weights.items()}
    return [sum(row) for row in filters(scene, flows)]


# Activations.


def mean_activation(scene: Scene) -> list[float]:
    return mean_over_positions(scene, abs)


def activation_rms(scene: Scene) -> list[float]:
    return [square**0.5 for square in mean_over_positions(scene, lambda a: a * a)]


def activation_spread(scene: Scene) -> list[float]:
    means = mean_over_positions(scene, lambda a: a)
    spreads = []
    for channel, mean in enumerate(means):
        values = [a for image in at_point(scene) for a, _ in image[channel]]
        spreads.append((sum((a - mean) ** 2 for a in values) / len(values)) ** 0.5)
    return spreads


def apoz(scene: Scene) -> list[float]:
    zeros = mean_over_positions(scene, lambda a: float(a <= 0))
    return [1 - share for share in zeros]


def wanda(scene: Scene) -> list[float]:
    scores = []
    for channel, weights in enumerate(read_by_consumers(scene)):
        squares = [0.0] * len(weights)
        for image in consumer_maps(scene):
            number = 0
            for calls in image[channel]:
                for maps in zip(*calls, strict=True):
                    squares[number] += sum(float((m**2).sum()) for m in maps) / len(scene.images)
                    number += 1
        pairs = zip(squares, weights, strict=True)
        scores.append(sum(square**0.5 * sum(abs(w) for w in read) for square, read in pairs))
    return scores


def hrank(scene: Scene) -> list[float]:
    """Ranks in single precision, as of maps in practice: smaller singular values are rounding."""
    total = [0.0] * scene.group.channels
    for image in consumer_maps(scene):
        for channel, layers in enumerate(image):
            for maps in (maps for calls in layers for maps in calls):
                # The inputs that one layer has of a channel are one below the other.
                matrix = torch.cat(maps).float()
                values = torch.linalg.svdvals(matrix).tolist()
                limit = max(values) * max(matrix.shape) * torch.finfo(torch.float32).eps
                total[channel] += sum(value > limit for value in values)
    return [value / len(scene.images) for value in total]


def chip(scene: Scene) -> list[float]:
    total = [0.0] * scene.group.channels
    for image in consumer_maps(scene):
        matrix = torch.stack(
            [
                torch.cat([m.flatten() for calls in layers for maps in calls for m in maps])
                for layers in image
            ]
        )
        whole = float(torch.linalg.svdvals(matrix).sum())
        for channel in range(scene.group.channels):
            without = matrix.clone()
            without[channel] = 0
            total[channel] += whole - float(torch.linalg.svdvals(without).sum())
    return [value / len(scene.images) for value in total]


# Activation and gradient.


def mean_gradient(scene: Scene) -> list[float]:
    return mean_over_images(scene, lambda values: abs(sum(g for _, g in values)))


def taylor(scene: Scene) -> list[float]:
    return mean_of_effects(scene, abs)


def taylor_elementwise(scene: Scene) -> list[float]:
    return mean_over_images(scene, lambda values: sum(abs(a * g) for a, g in values))


def taylor_2016(scene: Scene) -> list[float]:
    scores = mean_over_images(
        scene, lambda values: abs(sum(a * g for a, g in values) / len(values))
    )
    return [score / norm(scores) if norm(scores) else score for score in scores]


def taylor_gate(scene: Scene) -> list[float]:
    return [mean**2 for mean in mean_of_effects(scene, lambda effect: effect)]


def fisher(scene: Scene) -> list[float]:
    return mean_of_effects(scene, lambda effect: effect**2 / 2)


def group_fisher(scene: Scene) -> list[float]:
    memory = [len(values) for values in at_point(scene, "producers")[0]]
    squares = mean_of_effects(scene, lambda effect: effect**2)
    return [square / values for square, values in zip(squares, memory, strict=True)]


def energy_gradient(scene: Scene) -> list[float]:
    return mean_over_images(
        scene, lambda values: norm([a for a, _ in values]) * norm([g for _, g in values])
    )


# Weight and gradient.


def mean_gradients(scene: Scene) -> dict[str, Tensor]:
    """Gradient of the mean loss over images, of every layer's weight."""
    images = gradients(scene)
    return {layer: sum(g[layer] for g in images) / len(images) for layer in images[0]}  # type: ignore[misc]


def changes(scene: Scene) -> Filters:
    """w g of every weight of every channel's filters."""
    pairs = zip(filters(scene), filters(scene, mean_gradients(scene)), strict=True)
    return [[w * g for w, g in zip(row, slopes, strict=True)] for row, slopes in pairs]


def weight_taylor_squared(scene: Scene) -> list[float]:
    return [sum(change**2 for change in row) for row in changes(scene)]


def weight_taylor_joint(scene: Scene) -> list[float]:
    return [sum(row) ** 2 for row in changes(scene)]


def snip(scene: Scene) -> list[float]:
    return [sum(abs(change) for change in row) for row in changes(scene)]


def jacobian(scene: Scene) -> list[float]:
    own, read = filters(scene), read_by_consumers(scene)
    total = [0.0] * scene.group.channels
    for image in gradients(scene):
        own_slopes, read_slopes = filters(scene, image), read_by_consumers(scene, image)
        for channel in range(scene.group.channels):
            effect = sum(w * g for w, g in zip(own[channel], own_slopes[channel], strict=True))
            for weights, slopes in zip(read[channel], read_slopes[channel], strict=True):
                effect += sum(w * g for w, g in zip(weights, slopes, strict=True))
            total[channel] += effect**2
    return [value / len(scene.images) for value in total]


# Second order.


@lru_cache(maxsize=8)
def curvatures(scene: Scene) -> Filters:
    """Mean over images of squared gradients of the projected outputs, summed over calls."""
    images = []
    for image in gradients_by_call(scene, projected=True):
        squares = {layer: torch.stack(calls).square().sum(0) for layer, calls in image.items()}
        images.append(filters(scene, squares))
    return [
        [sum(values) / len(images) for values in zip(*rows, strict=True)]
        for rows in zip(*images, strict=True)
    ]


def obd(scene: Scene) -> list[float]:
    pairs = zip(filters(scene), curvatures(scene), strict=True)
    return [sum(w**2 * h / 2 for w, h in zip(row, c, strict=True)) for row, c in pairs]


def gauss_newton(scene: Scene) -> list[float]:
    images = gate_effects(scene, projected=True)
    return [
        sum(effect[channel] ** 2 / 2 for effect in images) / len(images)
        for channel in range(scene.group.channels)
    ]


def second_taylor_gate(scene: Scene) -> list[float]:
    pairs = zip(gate_effects(scene), gate_effects(scene, projected=True), strict=True)
    total = [0.0] * scene.group.channels
    for first, second in pairs:
        for channel in range(scene.group.channels):
            total[channel] += -first[channel] + second[channel] ** 2 / 2
    return [value / len(scene.images) for value in total]


def grasp(scene: Scene) -> list[float]:
    """The Hessian in the weights of all producers of the network's groups, all images at once."""
    model = copy.deepcopy(scene.model).eval().requires_grad_(True)
    groups = find_groups(scene.model, scene.images[0][0]).prunable.values()
    layers = sorted({layer for group in groups for layer in group.producers})
    weights = [model.get_submodule(layer).weight for layer in layers]
    losses = [scene.loss(model(image), label) for image, label in scene.images]
    slopes = torch.autograd.grad(torch.stack(losses).mean(), weights, create_graph=True)
    along = torch.stack([(slope * slope.detach()).sum() for slope in slopes]).sum()
    products = torch.autograd.grad(along, weights)
    scored = [weight.detach() * product for weight, product in zip(weights, products, strict=True)]
    return [sum(row) for row in filters(scene, dict(zip(layers, scored, strict=True)))]


# Ensembles.


def mean_rank(scene: Scene, members: Sequence[str]) -> list[float]:
    """Ranks from 1, ties sharing their mean, over the number of channels."""
    if not any(is_norm(scene.model.get_submodule(part.layer)) for part in scene.group.slices):
        members = [name for name in members if name != "batchnorm_scale"]
    total = [0.0] * scene.group.channels
    for name in members:
        scores = slow(scene, name)
        # Loops over the same numbers in another order round otherwise, and a tie is a tie.
        rounding = 1e-12 * max(abs(score) for score in scores)
        for channel, score in enumerate(scores):
            lower = sum(other < score - rounding for other in scores)
            equal = sum(abs(other - score) <= rounding for other in scores)
            total[channel] += lower + (equal + 1) / 2
    return [value / (len(members) * scene.group.channels) for value in total]


def is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.BatchNorm2d)


OF_WEIGHTS = (l1, l2, consumer_norm, group_l2, batchnorm_scale, fpgm, whc, lamp)
OF_ACTIVATIONS = (mean_activation, activation_rms, activation_spread, apoz, wanda)
OF_GRADIENTS = (
    mean_gradient,
    taylor,
    taylor_elementwise,
    taylor_2016,
    taylor_gate,
    fisher,
    group_fisher,
    energy_gradient,
    weight_taylor_squared,
    weight_taylor_joint,
    snip,
    jacobian,
)
EXPENSIVE = (synflow, obd, gauss_newton, second_taylor_gate, grasp, hrank, chip)


def rank_mean(scene: Scene) -> list[float]:
    names = [twin.__name__ for twin in (*OF_WEIGHTS, *OF_ACTIVATIONS, *OF_GRADIENTS)]
    return mean_rank(scene, names)


def rank_mean_gradient(scene: Scene) -> list[float]:
    return mean_rank(scene, [twin.__name__ for twin in OF_GRADIENTS])


TWINS: dict[str, Twin] = {
    twin.__name__: twin
    for twin in (
        *OF_WEIGHTS,
        *OF_ACTIVATIONS,
        *OF_GRADIENTS,
        *EXPENSIVE,
        rank_mean,
        rank_mean_gradient,
    )
}


@lru_cache(maxsize=256)
def slow(scene: Scene, name: str) -> list[float]:
    """Scores of a metric's twin, computed once for a scene: ensembles ask for those of others."""
    return TWINS[name](scene)
