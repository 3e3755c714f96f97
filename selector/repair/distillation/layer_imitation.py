"""Layers' outputs of two networks side by side: what a pruned layer should have given."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selector.data.forward import device_of
from selector.errors import SelectorError
from selector.network.layers import CONVOLUTION, NORMALISATION, layer_width
from selector.network.surgery import Cut, outputs_gone

Tapped = dict[str, Tensor]
"""Layer -> its output in the last forward pass."""


@dataclass(frozen=True, eq=False)
class Remaining:
    """The channels of an unpruned layer that its pruned copy still has."""

    channels: Tensor
    dimension: int
    """Where channels lie in the layer's output: last for linear layers, else second."""

    def of(self, output: Tensor) -> Tensor:
        """The part of the unpruned layer's output that the pruned one should give."""
        return output.index_select(self.dimension, self.channels)


@dataclass(frozen=True, eq=False)
class LayerImitation:
    """The squared error of layers' outputs, relative to their variance, mean over layers."""

    kept: Mapping[str, Remaining]
    """Layer -> the unpruned layer's channels that are left."""
    variances: Mapping[str, float]
    weight: float = 1.0
    """Makes the error as large as the outputs' divergence at the start."""

    def __call__(self, ours: Tapped, theirs: Tapped) -> Tensor:
        """Mean relative error over layers, times the weight; a scalar with a gradient."""
        errors = [
            nn.functional.mse_loss(ours[name], kept.of(theirs[name])) / self.variances[name]
            for name, kept in self.kept.items()
        ]
        return self.weight * torch.stack(errors).mean()


def imitated_layers(
    original: nn.Module, pruned: nn.Module, cuts: Iterable[Cut]
) -> dict[str, Remaining]:
    """Layers whose outputs can be compared, and the channels of the unpruned layer that are left.

    These are the BatchNorm layers, or where there are none, convolutions and linear layers. Of
    networks pruned elsewhere, no cuts are known: only layers that kept all channels are compared.

    Raises:
        SelectorError: There is no such layer.
    """
    gone = outputs_gone(cuts)
    modules = dict(original.named_modules())
    kinds: tuple[type[nn.Module], ...] = (NORMALISATION,)
    if not any(isinstance(module, kinds) for module in modules.values()):
        kinds = (CONVOLUTION, nn.Linear)
    kept = {}
    for name, layer in pruned.named_modules():
        if not isinstance(layer, kinds) or name not in modules:
            continue
        left = sorted(set(range(layer_width(modules[name], "out"))) - set(gone.get(name, ())))
        if len(left) == layer_width(layer, "out"):
            dimension = -1 if isinstance(layer, nn.Linear) else 1
            channels = torch.tensor(left, device=device_of(pruned))
            kept[name] = Remaining(channels, dimension)
    if not kept:
        raise SelectorError(
            "blocks=True finds no layer to compare; pass the PruneResult, which knows the "
            "channels that are left, or blocks=False"
        )
    return kept


@contextmanager
def tapping(model: nn.Module, names: Iterable[str]) -> Iterator[Tapped]:
    """Context in which the outputs of these layers are kept, for the last forward pass."""
    outputs: Tapped = {}
    hooks = []

    def hook(name: str) -> "torch.utils.hooks.RemovableHandle":
        def keep(_: nn.Module, __: object, output: Tensor) -> None:
            outputs[name] = output

        return model.get_submodule(name).register_forward_hook(keep)

    try:
        hooks = [hook(name) for name in names]
        yield outputs
    finally:
        for handle in hooks:
            handle.remove()


def measured_variances(kept: Mapping[str, Remaining], theirs: Tapped) -> dict[str, float]:
    """Variance of each layer's remaining channels over images and positions, mean over channels."""
    found = {}
    for name, remaining in kept.items():
        output = remaining.of(theirs[name]).double().movedim(remaining.dimension, 0)
        spread = float(output.flatten(1).var(1, unbiased=False).mean())
        found[name] = spread if spread > 0 else 1.0
    return found
