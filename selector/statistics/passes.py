"""Batch by batch through the network, forward and backward; only sums are kept of a batch."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.batches import Batches, batch_size
from selector.data.forward import read, run_batch
from selector.data.loss import Objective, check_finite
from selector.errors import SelectorError
from selector.network.groups import Group
from selector.statistics.accumulators import Sums
from selector.statistics.curvature import output_leaves, projections
from selector.statistics.hooks import Pass, tapped


@dataclass
class DataPass:
    """One pass over the data, and the running sums of it that belong to no single group."""

    model: nn.Module
    weights: Mapping[str, nn.Parameter]
    """Producer -> its weight, which is to have a gradient."""
    objective: Objective
    sums: Mapping[str, Sums]
    hooks: Pass
    backward: bool
    signs: torch.Generator
    """Random signs for the projections of a second backward pass."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Producer -> gradient of the loss summed over images, float64; empty without a backward."""
    images: int = 0
    loss: float = 0.0
    """Summed over images; NaN where a forward pass alone had no targets."""
    outputs: int = 0
    """Second dimension of the first output."""

    def read(self, batches: Batches, groups: Mapping[str, Group]) -> None:
        """Read all batches once."""
        if self.backward:
            self.gradients = {
                name: torch.zeros_like(weight, dtype=torch.float64)
                for name, weight in self.weights.items()
            }
        with (
            tapped(self.model, groups, self.sums, self.hooks),
            torch.set_grad_enabled(self.backward),
        ):
            for number, (inputs, targets) in enumerate(read(self.model, batches)):
                self._batch(inputs, targets, number)
                while self.hooks.overwritten:
                    # A layer like an in-place ReLU wrote over a map before its gradient came.
                    self.hooks.copied |= self.hooks.overwritten
                    self.hooks.overwritten = set()
                    for sums in self.sums.values():
                        sums.drop_batch()
                    self._batch(inputs, targets, number)
                for sums in self.sums.values():
                    sums.finish_batch()
                self.images += batch_size(inputs, targets)

    def _batch(self, inputs: object, targets: object, number: int) -> None:
        """One batch through the network; its graph is freed when this returns."""
        try:
            self._through(inputs, targets, number)
        finally:
            self.hooks.finish_batch()

    def _through(self, inputs: object, targets: object, number: int) -> None:
        self.hooks.stage, images = "loss", batch_size(inputs, targets)
        outputs = run_batch(self.model, inputs, number)
        self.outputs = _second_dimension(outputs)
        if targets is None and not self.backward:
            self.loss = float("nan")
            return
        value = self.objective.mean(outputs, targets)
        check_finite(value.detach(), number)
        if self.backward:
            weights = list(self.weights.values())
            # The sum over images: what flows back is then the gradient of each image's own loss.
            found = _differentiate(value * images, weights, keep=self.hooks.second_order)
            if self.hooks.overwritten:
                return
            for total, gradient in zip(self.gradients.values(), found, strict=True):
                if gradient is not None:
                    total.add_(gradient)
            if self.hooks.second_order:
                self.hooks.stage = "curvature"
                projected = projections(self.objective, outputs, targets, self.signs)
                torch.autograd.grad(output_leaves(outputs), weights, projected, allow_unused=True)
        self.loss += float(value.detach()) * images


def _second_dimension(outputs: object) -> int:
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor) and leaf.ndim > 1:
            return int(leaf.shape[1])
    return 0


def _differentiate(
    value: Tensor, weights: list[nn.Parameter], keep: bool
) -> tuple[Tensor | None, ...]:
    if not value.requires_grad:
        raise SelectorError(
            "the loss does not depend on the network's weights, so no gradient exists; check that "
            "loss(outputs, targets) uses the outputs and does not detach them"
        )
    # autograd.grad leaves the caller's .grad fields alone.
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        value, weights, allow_unused=True, retain_graph=keep
    )
    return found


@contextmanager
def only_trained(model: nn.Module, weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Context in which exactly these parameters take a gradient: nothing else is computed."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
