"""Slow twins of every metric, in loops over images and channels, as the papers write them.

Independent of the fast path: one image at a time, a gate or an additive probe at the consumers'
inputs instead of gradient hooks, and plain backward passes on a copy for the weights.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.groups import Group

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Scene:
    """A network, a group and single images: what a metric is a function of."""

    model: nn.Module
    group: Group
    images: Sequence[tuple[Tensor, Tensor]]
    """Batches of one."""
    loss: Loss = functional.cross_entropy


def singles(batches: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))]


def filters(scene: Scene, gradient: dict[str, Tensor] | None = None) -> list[Tensor]:
    """For every channel one long vector: its filters in all producers (or their gradients)."""
    found = []
    for channel in range(scene.group.channels):
        parts = []
        for part in scene.group.slices:
            if part.side != "out":
                continue
            layer = scene.model.get_submodule(part.layer)
            weight = layer.weight.detach() if gradient is None else gradient[part.layer]
            if isinstance(layer, nn.ConvTranspose2d):
                weight = weight.transpose(0, 1)
            own = [i for i, c in zip(part.indices, part.channels, strict=True) if c == channel]
            parts += [weight[i].flatten() for i in own]
        found.append(torch.cat(parts))
    return found


def weight_gradients(scene: Scene) -> dict[str, Tensor]:
    """Gradient of the mean loss over images, from one backward pass for every image."""
    model = copy.deepcopy(scene.model).eval().requires_grad_(True)
    model.zero_grad(set_to_none=True)
    for image, label in scene.images:
        (scene.loss(model(image), label) / len(scene.images)).backward()
    return {
        name: module.weight.grad.clone()
        for name, module in model.named_modules()
        if name in scene.group.producers
    }


def gate_effects(scene: Scene) -> list[Tensor]:
    """For every image: d loss / d gate, with one gate a channel at all the consumers' inputs."""
    found = []
    for image, label in scene.images:
        model = copy.deepcopy(scene.model).eval()
        gate = torch.ones(scene.group.channels, dtype=image.dtype, requires_grad=True)
        for layer, owner in _inputs(scene.group).items():

            def multiply(
                module: nn.Module,
                args: tuple[Tensor],
                owner: dict[int, int] = owner,
                gate: Tensor = gate,
            ) -> Tensor:
                x = args[0]
                factors = [
                    gate[owner[i]] if i in owner else torch.ones((), dtype=x.dtype)
                    for i in range(_width(module))
                ]
                return x * torch.stack(factors).view(1, -1, *[1] * (x.ndim - 2))

            model.get_submodule(layer).register_forward_pre_hook(multiply)
        scene.loss(model(image), label).backward()
        assert gate.grad is not None
        found.append(gate.grad)
    return found


def positions(scene: Scene) -> list[list[list[tuple[float, float]]]]:
    """Image -> channel -> (activation, gradient) at every position of every consumer's input."""
    found = []
    for image, label in scene.images:
        model = copy.deepcopy(scene.model).eval()
        seen: dict[str, Tensor] = {}
        probes: dict[str, Tensor] = {}
        for layer in _inputs(scene.group):

            def add_probe(
                module: nn.Module,
                args: tuple[Tensor],
                layer: str = layer,
                seen: dict[str, Tensor] = seen,
                probes: dict[str, Tensor] = probes,
            ) -> Tensor:
                seen[layer] = args[0].detach()
                probes[layer] = torch.zeros_like(seen[layer], requires_grad=True)
                return args[0] + probes[layer]

            model.get_submodule(layer).register_forward_pre_hook(add_probe)
        scene.loss(model(image), label).backward()
        channels: list[list[tuple[float, float]]] = [[] for _ in range(scene.group.channels)]
        for layer, owner in _inputs(scene.group).items():
            gradient = probes[layer].grad
            assert gradient is not None
            for index, channel in owner.items():
                values = seen[layer][0, index].flatten().tolist()
                slopes = gradient[0, index].flatten().tolist()
                channels[channel] += list(zip(values, slopes, strict=True))
        found.append(channels)
    return found


def _inputs(group: Group) -> dict[str, dict[int, int]]:
    return {
        part.layer: dict(zip(part.indices, part.channels, strict=True))
        for part in group.slices
        if part.side == "in"
    }


def _width(layer: nn.Module) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)  # type: ignore[arg-type]


def _per_channel(scene: Scene, value: Callable[[list[tuple[float, float]]], float]) -> list[float]:
    """Mean over images of a function of one image's positions of one channel."""
    images = positions(scene)
    return [
        sum(value(image[channel]) for image in images) / len(images)
        for channel in range(scene.group.channels)
    ]


def _mean_of_positions(scene: Scene, value: Callable[[float], float]) -> list[float]:
    images = positions(scene)
    means = []
    for channel in range(scene.group.channels):
        values = [value(a) for image in images for a, _ in image[channel]]
        means.append(sum(values) / len(values))
    return means


def l1(scene: Scene) -> list[float]:
    return [sum(abs(w) for w in row.tolist()) for row in filters(scene)]


def l2(scene: Scene) -> list[float]:
    return [sum(w * w for w in row.tolist()) ** 0.5 for row in filters(scene)]


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
        sum(
            sum((a - b) ** 2 for a, b in zip(row.tolist(), other.tolist(), strict=True)) ** 0.5
            for other in rows
        )
        for row in rows
    ]


def mean_activation(scene: Scene) -> list[float]:
    return _mean_of_positions(scene, abs)


def activation_rms(scene: Scene) -> list[float]:
    return [square**0.5 for square in _mean_of_positions(scene, lambda a: a * a)]


def apoz(scene: Scene) -> list[float]:
    zeros = _mean_of_positions(scene, lambda a: float(a <= 0))
    return [1 - share for share in zeros]


def mean_gradient(scene: Scene) -> list[float]:
    return _per_channel(scene, lambda values: abs(sum(g for _, g in values)))


def taylor(scene: Scene) -> list[float]:
    effects = gate_effects(scene)
    return [
        sum(abs(float(effect[channel])) for effect in effects) / len(effects)
        for channel in range(scene.group.channels)
    ]


def taylor_elementwise(scene: Scene) -> list[float]:
    return _per_channel(scene, lambda values: sum(abs(a * g) for a, g in values))


def fisher(scene: Scene) -> list[float]:
    effects = gate_effects(scene)
    return [
        sum(float(effect[channel]) ** 2 for effect in effects) / (2 * len(effects))
        for channel in range(scene.group.channels)
    ]


def weight_taylor_squared(scene: Scene) -> list[float]:
    pairs = zip(filters(scene), filters(scene, weight_gradients(scene)), strict=True)
    return [
        sum((w * g) ** 2 for w, g in zip(row.tolist(), slopes.tolist(), strict=True))
        for row, slopes in pairs
    ]


def snip(scene: Scene) -> list[float]:
    pairs = zip(filters(scene), filters(scene, weight_gradients(scene)), strict=True)
    return [
        sum(abs(w * g) for w, g in zip(row.tolist(), slopes.tolist(), strict=True))
        for row, slopes in pairs
    ]


TWINS: dict[str, Callable[[Scene], list[float]]] = {
    "l1": l1,
    "l2": l2,
    "batchnorm_scale": batchnorm_scale,
    "fpgm": fpgm,
    "mean_activation": mean_activation,
    "activation_rms": activation_rms,
    "apoz": apoz,
    "mean_gradient": mean_gradient,
    "taylor": taylor,
    "taylor_elementwise": taylor_elementwise,
    "fisher": fisher,
    "weight_taylor_squared": weight_taylor_squared,
    "snip": snip,
}
