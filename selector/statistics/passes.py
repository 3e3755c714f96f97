"""Batch by batch through the network, forward and backward; only sums are kept of a batch."""

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.batches import Batches, batch_size
from selector.data.forward import read, run_batch
from selector.data.loss import Objective, check_finite
from selector.errors import SelectorError
from selector.network.copying import check_usable
from selector.network.coupling.law import exact_arithmetic
from selector.network.groups import Group
from selector.statistics.accumulators import GroupSums
from selector.statistics.curvature import output_leaves
from selector.statistics.gradient_source import GradientSource
from selector.statistics.hooks import PassState, tapped


@dataclass
class DataPass:
    """One pass over the data, and the running sums of it that belong to no single group."""

    model: nn.Module
    weights: Mapping[str, nn.Parameter]
    """Producer -> its weight, which is to have a gradient."""
    passed: Sequence[nn.Parameter]
    """Embeddings and other bare tensors of the groups: where they are all that channels come from,
    gradients reach what reads the channels only on their way to these."""
    objective: Objective
    source: GradientSource
    sums: Mapping[str, GroupSums]
    state: PassState
    signs: torch.Generator
    """Random signs for the projections of a second backward pass."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Producer -> gradient of the loss summed over images, float64; empty without a backward."""
    images: int = 0
    loss: float = 0.0
    """Of outputs and targets, summed over images; NaN without targets."""
    outputs: int = 0
    """Second dimension of the first output."""

    def read(self, batches: Batches, groups: Mapping[str, Group]) -> None:
        """Read all batches once."""
        if self.state.backward:
            self.gradients = {
                name: torch.zeros_like(weight, dtype=torch.float64)
                for name, weight in self.weights.items()
            }
        with (
            tapped(self.model, groups, self.sums, self.state),
            torch.set_grad_enabled(self.state.backward),
        ):
            for number, (inputs, targets) in enumerate(read(self.model, batches)):
                while not self._batch(inputs, targets, number):
                    for sums in self.sums.values():
                        sums.drop_batch()
                for sums in self.sums.values():
                    sums.finish_batch()
                self.images += batch_size(inputs, targets)

    def _batch(self, inputs: object, targets: object, number: int) -> bool:
        """One batch through the network; its graph is freed when this returns.

        Returns:
            Whether its sums are valid; otherwise the batch must be read again.
        """
        try:
            return self._through(inputs, targets, number)
        finally:
            self.state.finish_batch()

    def _through(self, inputs: object, targets: object, number: int) -> bool:
        state, images = self.state, batch_size(inputs, targets)
        state.images = images
        state.stage, known = "forward", state.recomputes
        outputs = self._run(inputs, number)
        if state.recomputes and not known:
            return False  # Layers ran without a gradient: it has to be asked for otherwise.
        self.outputs = _second_dimension(outputs)
        loss, value = self._values(outputs, targets, number)
        if value is not None:
            state.stage = "loss"
            # The sum over images: what flows back is then the gradient of each image's own loss.
            found = self._differentiate(value * images)
            state.note_forgotten()
            if state.overwritten:
                # A layer like an in-place ReLU wrote over a map before its gradient came.
                state.copied |= state.overwritten
                state.overwritten = set()
                return False
            for total, gradient in zip(self.gradients.values(), found, strict=True):
                if gradient is not None:
                    total.add_(gradient)
            if state.second_order:
                state.stage = "curvature"
                projected = self.source.projected(outputs, targets, self.signs)
                self._gradients(output_leaves(outputs), projected, keep=False)
        self.loss += loss * images
        return True

    def _values(self, outputs: object, targets: object, number: int) -> tuple[float, Tensor | None]:
        """Mean loss of a batch, NaN without targets; and what is differentiated, if anything."""
        backward, loss = self.state.backward, None
        if targets is not None or (backward and self.source.is_loss):
            loss = self.objective.mean(outputs, targets)
            check_finite(loss.detach(), number)
        known = float("nan") if loss is None else float(loss.detach())
        if not backward or self.source.is_loss:
            return known, loss if backward else None
        value = self.source.value(outputs, targets, number)
        check_finite(value.detach(), number)
        return known, value

    def _run(self, inputs: object, number: int) -> object:
        with warnings.catch_warnings():
            # Reentrant checkpointing of the first layer warns; the batch is then run again.
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
            return run_batch(
                self.model, _differentiable(inputs) if self.state.recomputes else inputs, number
            )

    def _differentiate(self, value: Tensor) -> Sequence[Tensor | None]:
        if not value.requires_grad:
            raise SelectorError(
                "the loss does not depend on the network's weights, so no gradient exists; check "
                "that loss(outputs, targets) uses the outputs and does not detach them, and that "
                "the network's forward does not run under torch.no_grad or torch.inference_mode"
            )
        return self._gradients([value], None, keep=self.state.second_order)

    def _gradients(
        self, values: Sequence[Tensor], seeds: Sequence[Tensor] | None, keep: bool
    ) -> Sequence[Tensor | None]:
        """Gradients of the producers' weights; the caller's .grad fields stay as they are."""
        weights = list(self.weights.values())
        every = [*weights, *self.passed]
        if not self.state.recomputes:
            found = torch.autograd.grad(values, every, seeds, allow_unused=True, retain_graph=keep)
            return found[: len(weights)]
        # Reentrant checkpointing allows nothing but .backward().
        with own_gradients(every):
            torch.autograd.backward(values, seeds, retain_graph=keep)
            return [weight.grad for weight in weights]


def _differentiable(inputs: object) -> object:
    """Inputs that take a gradient: reentrant checkpointing passes none on otherwise."""

    def follow(leaf: object) -> object:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            # Not a leaf itself, so that the network may write over it.
            return leaf.detach().requires_grad_(True).clone()
        return leaf

    found: object = pytree.tree_map(follow, inputs)
    return found


def _second_dimension(outputs: object) -> int:
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor) and leaf.ndim > 1:
            return int(leaf.shape[1])
    return 0


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Context in which a network computes in the precision of its weights.

    Without the caller's autocast, no_grad or inference_mode, and without the reduced precision of
    `torch.set_float32_matmul_precision`: the numbers are those outside of all these.

    Raises:
        SelectorError: Weights without values, or made under inference_mode.
    """
    check_usable(model)
    with torch.inference_mode(False), torch.enable_grad(), exact_arithmetic(model):
        yield


@contextmanager
def own_gradients(weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Context in which .grad is empty and the caller's hooks on it do not run; both come back."""
    name = "_post_accumulate_grad_hooks"
    known = [(weight, weight.grad, getattr(weight, name, None)) for weight in weights]
    try:
        for weight, _, hooks in known:
            weight.grad = None
            if hooks:
                # An optimizer that steps in the backward pass, say. Setting None removes nothing.
                setattr(weight, name, OrderedDict())
        yield
    finally:
        for weight, gradient, hooks in known:
            weight.grad = gradient
            if hooks:
                setattr(weight, name, hooks)


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
