"""Batch by batch through the network, forward and backward; only sums are kept of a batch."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
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
from selector.statistics.hooks import tapped
from selector.statistics.leaves import lowest_leaves, own_gradients
from selector.statistics.pass_state import PassState


@dataclass
class SourceSums:
    """What a pass sums up of one source of gradients; and of the forward pass, in the first."""

    source: GradientSource
    sums: Mapping[str, GroupSums]
    """Of every group."""
    of_weights: bool
    """Whether the weights' gradients are wanted, and not those of activations alone."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Producer -> gradient of its weight summed over images, float64; empty without."""


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
    sources: Sequence[SourceSums]
    """One forward pass serves all; each has a backward pass of its own."""
    state: PassState
    signs: torch.Generator
    """Random signs for the projections of a second backward pass."""
    images: int = 0
    loss: float = 0.0
    """Of outputs and targets, summed over images; NaN without targets."""
    outputs: int = 0
    """Second dimension of the first output."""

    def read(self, batches: Batches, groups: Mapping[str, Group]) -> None:
        """Read all batches once."""
        for one in self.sources:
            if self.state.backward and one.of_weights:
                one.gradients = {
                    name: torch.zeros_like(weight, dtype=torch.float64)
                    for name, weight in self.weights.items()
                }
        every = [sums for one in self.sources for sums in one.sums.values()]
        with (
            tapped(self.model, groups, [one.sums for one in self.sources], self.state),
            torch.set_grad_enabled(self.state.backward),
        ):
            for number, (inputs, targets) in enumerate(read(self.model, batches)):
                while not self._batch(inputs, targets, number):
                    for sums in every:
                        sums.drop_batch()
                for sums in every:
                    sums.finish_batch()
                self.images += batch_size(inputs, targets)
        first, *others = self.sources
        for name, sums in first.sums.items():
            sums.finish(self.images)
            for other in others:
                other.sums[name].finish(self.images, sums)

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
        first, *others = self.sources
        for other in others:
            for name, sums in other.sums.items():
                sums.adopt(first.sums[name])
        loss = self._loss(outputs, targets, number)
        for turn, one in enumerate(self.sources if state.backward else ()):
            state.stage, state.turn = "loss", turn
            # The sum over images: what flows back is then the gradient of each image's own loss.
            value = self._value(one, loss, outputs, targets, number) * images
            found = self._differentiate(value, one)
            state.note_forgotten()
            if state.overwritten:
                # A layer like an in-place ReLU wrote over a map before its gradient came.
                state.copied |= state.overwritten
                state.overwritten = set()
                return False
            for name, gradient in found.items():
                if name in one.gradients and gradient is not None:
                    one.gradients[name].add_(gradient)
            if state.second_order:
                state.stage = "curvature"
                projected = one.source.projected(outputs, targets, self.signs)
                self._gradients(output_leaves(outputs), projected, list(self.weights), keep=False)
        self.loss += images * (float("nan") if loss is None else float(loss.detach()))
        return True

    def _loss(self, outputs: object, targets: object, number: int) -> Tensor | None:
        """Mean loss of a batch; None without targets, unless it is differentiated."""
        differentiated = self.state.backward and any(one.source.is_loss for one in self.sources)
        if targets is None and not differentiated:
            return None
        loss = self.objective.mean(outputs, targets)
        check_finite(loss.detach(), number)
        return loss

    def _value(
        self, one: SourceSums, loss: Tensor | None, outputs: object, targets: object, number: int
    ) -> Tensor:
        """What a source differentiates, a mean over the images."""
        if one.source.is_loss and loss is not None:
            return loss
        value = one.source.value(outputs, targets, number)
        check_finite(value.detach(), number)
        return value

    def _run(self, inputs: object, number: int) -> object:
        with warnings.catch_warnings():
            # Reentrant checkpointing of the first layer warns; the batch is then run again.
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
            return run_batch(
                self.model, _differentiable(inputs) if self.state.recomputes else inputs, number
            )

    def _differentiate(self, value: Tensor, one: SourceSums) -> dict[str, Tensor | None]:
        """Gradients of the producers' weights, of all of them or of those that suffice."""
        if not value.requires_grad:
            raise SelectorError(
                "the loss does not depend on the network's weights, so no gradient exists; check "
                "that loss(outputs, targets) uses the outputs and does not detach them, and that "
                "the network's forward does not run under torch.no_grad or torch.inference_mode"
            )
        names = list(self.weights)
        if not (one.of_weights or self.state.recomputes):
            lowest = lowest_leaves(value, [*self.weights.values(), *self.passed])
            names = [name for name, weight in self.weights.items() if id(weight) in lowest]
        keep = self.state.second_order or not self.state.last_turn
        return self._gradients([value], None, names, keep=keep)

    def _gradients(
        self,
        values: Sequence[Tensor],
        seeds: Sequence[Tensor] | None,
        names: Sequence[str],
        keep: bool,
    ) -> dict[str, Tensor | None]:
        """Gradients of some producers' weights; the caller's .grad fields stay as they are."""
        weights = [self.weights[name] for name in names]
        every = [*weights, *self.passed]
        if not self.state.recomputes:
            found = torch.autograd.grad(values, every, seeds, allow_unused=True, retain_graph=keep)
            return dict(zip(names, found, strict=False))
        # Reentrant checkpointing allows nothing but .backward().
        with own_gradients(every):
            torch.autograd.backward(values, seeds, retain_graph=keep)
            return {name: weight.grad for name, weight in zip(names, weights, strict=True)}


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
