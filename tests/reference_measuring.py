"""What the slow twins measure, one image at a time on copies of the network, with plain probes."""

import copy
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torch.nn import functional

from selector.network.groups import Slice
from selector.saliency.checks import Scene

Where = Literal["consumers", "producers"]
Filters = list[list[float]]
Pairs = list[list[tuple[float, float]]]
"""Channel -> position -> (value, gradient)."""


def inputs_of(scene: Scene, channel: int, side: str) -> list[tuple[str, int]]:
    """(layer, index) of every input, or output, that belongs to a channel."""
    return [
        (part.layer, index)
        for part in scene.group.slices
        if part.side == side
        for index in own_inputs(part, channel)
    ]


def filters(scene: Scene, values: Mapping[str, Tensor] | None = None) -> Filters:
    """For every channel one long vector: its filters in all producers, or values in that form."""
    found: Filters = []
    for channel in range(scene.group.channels):
        row: list[float] = []
        for name, index in inputs_of(scene, channel, "out"):
            layer = scene.model.get_submodule(name)
            weight = layer.weight.detach() if values is None else values[name]
            row += writing(layer, weight, index)
        found.append(row)
    return found


def writing(layer: nn.Module, weight: Tensor, index: int) -> list[float]:
    """The weights that make one of a layer's outputs."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return weight[index].flatten().tolist()
    inputs, outputs = len(weight) // layer.groups, weight.shape[1]
    block = index // outputs
    rows = range(block * inputs, (block + 1) * inputs)
    return [w for row in rows for w in weight[row, index % outputs].flatten().tolist()]


def read_by_consumers(
    scene: Scene, values: Mapping[str, Tensor] | None = None
) -> list[list[list[float]]]:
    """Channel -> input of a consumer -> the weights that read it, or values in their form."""
    found = []
    for channel in range(scene.group.channels):
        inputs = []
        for name, index in inputs_of(scene, channel, "in"):
            layer = scene.model.get_submodule(name)
            weight = layer.weight.detach() if values is None else values[name]
            inputs.append(reading(layer, weight, index))
        found.append(inputs)
    return found


def reading(layer: nn.Module, weight: Tensor, index: int) -> list[float]:
    """The weights with which a layer's outputs read one of its inputs."""
    if isinstance(layer, nn.ConvTranspose2d):
        return weight[index].flatten().tolist()
    blocks = layer.groups if isinstance(layer, nn.Conv2d) else 1
    inputs, outputs = weight.shape[1], len(weight) // blocks
    block = index // inputs
    rows = range(block * outputs, (block + 1) * outputs)
    return [w for row in rows for w in weight[row, index % inputs].flatten().tolist()]


@lru_cache(maxsize=8)
def directions(scene: Scene) -> list[Tensor]:
    """F u for every image: F F^T is the Hessian of its loss in the outputs, u are random signs."""
    generator = torch.Generator().manual_seed(0)
    model = copy.deepcopy(scene.model).eval()
    found = []
    for image, label in scene.images:
        outputs = model(image).detach()[0]
        classes = len(outputs)
        hessian = torch.autograd.functional.hessian(
            lambda values, label=label: scene.loss(values[None], label), outputs
        )
        if scene.loss is functional.cross_entropy:
            p = outputs.softmax(0).tolist()
            factor = torch.tensor(
                [
                    [(i == k) * p[k] ** 0.5 - p[i] * p[k] ** 0.5 for k in range(classes)]
                    for i in range(classes)
                ],
                dtype=outputs.dtype,
            )
        else:
            factor = torch.from_numpy(sqrtm(hessian.numpy()).real)
        assert torch.allclose(factor @ factor.T, hessian, atol=1e-7)
        signs = 2 * torch.randint(0, 2, (1, classes), generator=generator)[0] - 1
        found.append(factor @ signs.to(outputs))
    return found


def scalar(scene: Scene, model: nn.Module, number: int, projected: bool) -> Tensor:
    """An image's loss, or its outputs projected on F u."""
    image, label = scene.images[number]
    outputs = model(image)
    return (
        (outputs[0] * directions(scene)[number]).sum() if projected else scene.loss(outputs, label)
    )


@lru_cache(maxsize=8)
def gradients_by_call(scene: Scene, projected: bool = False) -> list[dict[str, list[Tensor]]]:
    """For every image: layer -> gradient of the layer's weight in every call of the layer."""
    found: list[dict[str, list[Tensor]]] = []
    for number in range(len(scene.images)):
        model = copy.deepcopy(scene.model).eval()
        layers = {*scene.group.producers, *scene.group.consumers}
        weights: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        for layer in layers:

            def fresh_weight(
                module: nn.Module, args: object, own: list[Tensor] = weights[layer]
            ) -> None:
                own.append(module.weight.detach().clone().requires_grad_(True))
                module._parameters["weight"] = own[-1]  # type: ignore[assignment]

            model.get_submodule(layer).register_forward_pre_hook(fresh_weight)
        scalar(scene, model, number, projected).backward()
        found.append({layer: [w.grad for w in calls] for layer, calls in weights.items()})  # type: ignore[misc]
    return found


def gradients(scene: Scene) -> list[dict[str, Tensor]]:
    """For every image: layer -> gradient of the layer's weight."""
    return [
        {layer: torch.stack(calls).sum(0) for layer, calls in image.items()}
        for image in gradients_by_call(scene)
    ]


@lru_cache(maxsize=8)
def gate_effects(scene: Scene, projected: bool = False) -> list[list[float]]:
    """For every image: d loss / d gate, with one gate a channel at all the consumers' inputs."""
    found = []
    for number, (image, _) in enumerate(scene.images):
        gate = torch.ones(scene.group.channels, dtype=image.dtype, requires_grad=True)
        scalar(scene, gated(scene, gate), number, projected).backward()
        assert gate.grad is not None
        found.append(gate.grad.tolist())
    return found


def gated(scene: Scene, gate: Tensor) -> nn.Module:
    """A copy of the network whose channels are multiplied with a gate before every consumer."""
    model = copy.deepcopy(scene.model).eval()
    for part in scene.group.slices:
        if part.side == "in":
            owner = dict(zip(part.indices, part.channels, strict=True))

            def multiply(
                module: nn.Module, args: tuple[Tensor], owner: dict[int, int] = owner
            ) -> Tensor:
                width = -1 if isinstance(module, nn.Linear) else 1
                one = torch.ones((), dtype=gate.dtype)
                planes = [
                    plane * (gate[owner[i]] if i in owner else one)
                    for i, plane in enumerate(args[0].unbind(width))
                ]
                return torch.stack(planes, width)

            model.get_submodule(part.layer).register_forward_pre_hook(multiply)
    return model


Call = tuple[Tensor, Tensor]
"""Values and gradient at a measuring point in one call of a layer; its width comes first."""


@lru_cache(maxsize=16)
def probed(
    scene: Scene, where: Where = "consumers", projected: bool = False
) -> list[dict[str, list[Call]]]:
    """For every image: layer -> its inputs, or outputs, at every call, and the gradient there."""
    found = []
    layers = scene.group.consumers if where == "consumers" else scene.group.producers
    for number in range(len(scene.images)):
        model = copy.deepcopy(scene.model).eval()
        seen: dict[str, list[Call]] = {layer: [] for layer in layers}

        def add_probe(layer: str, values: Tensor, seen: dict[str, list[Call]] = seen) -> Tensor:
            probe = torch.zeros_like(values, requires_grad=True)
            seen[layer].append((values.detach().clone(), probe))
            return values + probe

        for layer in layers:
            module = model.get_submodule(layer)
            if where == "consumers":
                module.register_forward_pre_hook(
                    lambda _, args, layer=layer: add_probe(layer, args[0])
                )
            else:
                module.register_forward_hook(
                    lambda _, args, output, layer=layer: add_probe(layer, output)
                )
        scalar(scene, model, number, projected).backward()
        image = {}
        for layer, calls in seen.items():
            linear = isinstance(model.get_submodule(layer), nn.Linear)
            image[layer] = [
                (width_first(values, linear), width_first(probe.grad, linear))
                for values, probe in calls
            ]
        found.append(image)
    return found


def width_first(values: Tensor, linear: bool) -> Tensor:
    """One image's values at a layer with the layer's width as the first dimension."""
    return values[0].movedim(-1, 0) if linear else values[0]


@lru_cache(maxsize=16)
def at_point(scene: Scene, where: Where = "consumers", projected: bool = False) -> list[Pairs]:
    """Image -> channel -> (activation, gradient) at every position of every layer."""
    side = "in" if where == "consumers" else "out"
    found = []
    for image in probed(scene, where, projected):
        channels: Pairs = []
        for channel in range(scene.group.channels):
            pairs: list[tuple[float, float]] = []
            for layer, index in inputs_of(scene, channel, side):
                for call in image[layer]:
                    values, slopes = (tensor[index].flatten().tolist() for tensor in call)
                    pairs += zip(values, slopes, strict=True)
            channels.append(pairs)
        found.append(channels)
    return found


@lru_cache(maxsize=8)
def consumer_maps(scene: Scene) -> list[list[list[list[list[Tensor]]]]]:
    """Image -> channel -> consumer -> call of it -> the map at each of the channel's inputs.

    What has no rows is a map of one row.
    """
    return [
        [
            [
                [
                    [torch.atleast_2d(values[index]) for index in own_inputs(part, channel)]
                    for values, _ in image[part.layer]
                ]
                for part in scene.group.slices
                if part.side == "in"
            ]
            for channel in range(scene.group.channels)
        ]
        for image in probed(scene)
    ]


def own_inputs(part: Slice, channel: int) -> list[int]:
    return [i for i, owner in zip(part.indices, part.channels, strict=True) if owner == channel]
