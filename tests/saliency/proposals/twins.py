"""What a consumer sees of a group, gathered in loops, and refits by numpy's least squares."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.network.copying import copy_of
from selector.network.groups import Group
from selector.network.input_products import RIDGE
from selector.network.layers import CONVOLUTION, input_dimension, output_dimension
from selector.saliency.proposals.covariance import View, in_precision
from selector.typing import Matrix

Batches = Sequence[tuple[Tensor, Tensor]]


def places(group: Group, layer: str) -> list[list[int]]:
    """For every channel, the positions of a consumer's inputs that belong to it."""
    (part,) = (p for p in group.slices if p.layer == layer and p.side == "in")
    found: list[list[int]] = [[] for _ in range(group.channels)]
    for index, channel in zip(part.indices, part.channels, strict=True):
        found[channel].append(index)
    return found


def seen(model: nn.Module, layer: str, batches: Batches) -> tuple[list[Matrix], list[Matrix]]:
    """Inputs of a layer and each image's gradient there, one array (inputs, positions) an image."""
    inputs: list[Matrix] = []
    slopes: list[Matrix] = []
    module = model.get_submodule(layer)

    def flat(values: Tensor) -> Matrix:
        one = values.detach()[0]
        return (one.flatten(1) if isinstance(module, CONVOLUTION) else one[:, None]).numpy()

    for images, labels in batches:
        for image, label in zip(images.split(1), labels.split(1), strict=True):
            held: list[Tensor] = []

            def own_view(_: nn.Module, args: tuple[Tensor], held: list[Tensor] = held) -> Tensor:
                held.append(args[0].view_as(args[0]))
                return held[0]

            handle = module.register_forward_pre_hook(own_view)
            loss = functional.cross_entropy(model(image), label)
            handle.remove()
            (slope,) = torch.autograd.grad(loss, held)
            inputs.append(flat(held[0]))
            slopes.append(flat(slope))
    return inputs, slopes


def reading_weights(module: nn.Module, index: int) -> Matrix:
    """The weights of a layer that read one of its inputs, (outputs and taps,)."""
    weight = module.weight.detach().numpy()
    if isinstance(module, nn.ConvTranspose2d):
        return weight[index].ravel()
    if isinstance(module, CONVOLUTION) and module.groups > 1:
        each, outputs = weight.shape[1], len(weight) // module.groups
        block = index // each
        return weight[block * outputs : (block + 1) * outputs, index % each].ravel()
    return weight[:, index].ravel()


def covariance(columns: Sequence[Iterable[float]]) -> Matrix:
    """Covariance of columns, with the ridge, in units of their standard deviations."""
    table = np.array([list(column) for column in columns])
    found = np.zeros((len(table), len(table)))
    for i, one in enumerate(table):
        for j, other in enumerate(table):
            product = ((one - one.mean()) * (other - other.mean())).mean()
            spread = one.std() * other.std()
            found[i, j] = product / spread if spread > 0 else 0.0
        found[i, i] = 1 + RIDGE
    return found


def error(view: View, channels: int, gone: Iterable[int]) -> float:
    """Least-squares error of a consumer without some channels, the others refitted.

    `A` and `B` are taken apart into rows of inputs and columns of weights.
    """
    inputs = np.linalg.cholesky(view.inputs.numpy()).T
    values, vectors = np.linalg.eigh(view.outputs.numpy())
    weights = vectors * np.sqrt(np.maximum(values, 0))
    width = len(inputs) // channels
    lost = {channel * width + i for channel in gone for i in range(width)}
    kept = [i for i in range(len(inputs)) if i not in lost]
    wanted = inputs @ weights
    fitted = np.linalg.lstsq(inputs[:, kept], wanted, rcond=None)[0]
    return float(np.square(wanted - inputs[:, kept] @ fitted).sum())


def made_view(
    inputs: int, seed: int, *, rank: int = 0, constant: bool = False, outputs: int = 4
) -> View:
    """A view of random inputs that have something in common.

    Args:
        inputs: How many.
        seed: Of the numbers.
        rank: Rows that the covariance comes from; three times the inputs by default.
        constant: Whether the first input never changes, as `covariance.py` describes such a one.
        outputs: Of the consumer.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rank or 3 * inputs, inputs, generator=generator, dtype=torch.float64)
    rows += rows[:, :1].clone()
    rows /= rows.square().sum(0).sqrt()
    weights = torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)
    if constant:
        rows[:, 0] = 0
        weights[0] = 0
    products = rows.T @ rows
    products.diagonal().fill_(1 + RIDGE)
    return View(in_precision(products), in_precision(weights @ weights.T))


def pivots_of(matrix: Tensor) -> list[int]:
    """Pivoted Cholesky, column by column; where nothing is left, the largest first."""
    left = matrix.clone()
    own = matrix.diagonal().tolist()
    found: list[int] = []
    while len(found) < len(own):
        free = [c for c in range(len(own)) if c not in found]
        spent = [float(left[c, c]) <= 1e-9 * own[c] for c in free]
        if all(spent):
            found.append(max(free, key=lambda c: own[c]))
            continue
        open_ = [c for c, gone in zip(free, spent, strict=True) if not gone]
        found.append(max(open_, key=lambda c: float(left[c, c])))
        column = left[:, found[-1]] / left[found[-1], found[-1]].sqrt()
        left = left - torch.outer(column, column)
    return found


def order_of(channels: int) -> list[int]:
    """A fixed order in which every channel moves somewhere else."""
    return [
        (channel * 2 + 1) % channels if channels % 2 else channels - 1 - channel
        for channel in range(channels)
    ]


def reordered(
    model: nn.Module, groups: Mapping[str, Group], orders: Mapping[str, Sequence[int]]
) -> nn.Module:
    """The same function with the channels of every group in another order."""
    copied = copy_of(model)
    for name, group in groups.items():
        for part in group.slices:
            layer = copied.get_submodule(part.layer)
            own: list[list[int]] = [[] for _ in range(group.channels)]
            for index, channel in zip(part.indices, part.channels, strict=True):
                own[channel].append(index)
            for key, tensor in layer.state_dict(keep_vars=True).items():
                if tensor.ndim == 0 or (part.side == "in" and key != "weight"):
                    continue
                dimension = 0
                if key == "weight" and part.side == "in":
                    dimension = input_dimension(layer)
                elif key == "weight" and part.side == "out":
                    dimension = output_dimension(layer)
                width = tensor.shape[dimension]
                sources = list(range(width))
                for channel, source in enumerate(orders[name]):
                    for to, come in zip(own[channel], own[source], strict=True):
                        # The groups of a convolution share the columns.
                        sources[to % width] = come % width
                tensor.data = tensor.data.index_select(dimension, torch.tensor(sources))
    return copied
