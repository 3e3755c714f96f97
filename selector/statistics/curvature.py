"""Second order: curvature of the loss at the network's outputs, and Hessian times gradient.

The Gauss-Newton matrix of an image is J^T H J, with J the Jacobian of the outputs and H the Hessian
of the image's loss with respect to them. With H = F F^T and random signs u, the gradient of the
outputs projected on F u is, squared, an unbiased estimate of the diagonal of J^T H J.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.batches import Batches, batch_size
from selector.data.forward import read, run_batch
from selector.data.loss import Objective
from selector.errors import SelectorError

MOST_OUTPUTS = 2048
"""Outputs per image up to which the Hessian of a user's own loss is taken apart."""


def output_leaves(outputs: object) -> list[Tensor]:
    """The outputs that carry a gradient."""
    leaves = pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]


def projections(
    objective: Objective, outputs: object, targets: object, generator: torch.Generator
) -> list[Tensor]:
    """F u for every image, in the shapes of `output_leaves(outputs)`.

    Args:
        objective: The loss. Cross-entropy has a factor in closed form; the Hessian of any other
            loss is computed, one output after the other, and F is its symmetric root without
            negative eigenvalues.
        outputs: What the network gave.
        targets: What the loss compares it with.
        generator: Source of the random signs; one for each output of each image, in that order.

    Raises:
        SelectorError: A loss of the user's own with too many outputs per image.
    """
    leaves = output_leaves(outputs)
    images = batch_size(outputs)
    widths = [leaf[0].numel() for leaf in leaves]
    # Drawn as whole numbers: these come one by one, whatever the size of the batches.
    signs = torch.randint(0, 2, (images, sum(widths)), generator=generator)
    signs = (2 * signs - 1).to(leaves[0].device, leaves[0].dtype)
    if objective.loss is None and leaves[0].ndim == 2:
        return [cross_entropy_factor(leaves[0].detach(), signs)]
    if sum(widths) > MOST_OUTPUTS:
        raise SelectorError(
            f"second-order metrics take the Hessian of the loss apart, and an image has "
            f"{sum(widths)} outputs (at most {MOST_OUTPUTS}); leave them out, or use the default "
            "cross-entropy"
        )
    projected = _root(_hessians(objective, outputs, targets)) @ signs.double()[:, :, None]
    parts = torch.split(projected[:, :, 0].to(leaves[0].dtype), widths, 1)
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]


def cross_entropy_factor(logits: Tensor, signs: Tensor) -> Tensor:
    """F u with F = diag(r) - p r^T, r = p^(1/2): F F^T = diag(p) - p p^T since r^T r = 1."""
    shares = logits.softmax(1)
    roots = shares.sqrt()
    return roots * signs - shares * (roots * signs).sum(1, keepdim=True)


def _hessians(objective: Objective, outputs: object, targets: object) -> Tensor:
    """Hessian of each image's loss in its outputs, (images, width, width), float64."""
    leaves, spec = pytree.tree_flatten(outputs)
    fresh = [
        leaf.detach().requires_grad_(True)
        if isinstance(leaf, Tensor) and leaf.requires_grad
        else leaf
        for leaf in leaves
    ]
    carrying = output_leaves(fresh)
    images = batch_size(outputs)
    with torch.enable_grad():
        value = objective.mean(pytree.tree_unflatten(fresh, spec), targets) * images
        slopes = torch.autograd.grad(value, carrying, create_graph=True, allow_unused=True)
        given = [slope for slope in slopes if slope is not None]
        if len(given) < len(carrying):
            raise SelectorError(
                "an output of the network carries a gradient that the loss does not use; "
                "second-order metrics need a loss of all of them"
            )
        flat = torch.cat([slope.reshape(images, -1) for slope in given], 1)
        width = sum(leaf[0].numel() for leaf in carrying)
        if not flat.requires_grad:  # The loss is linear in the outputs.
            return flat.new_zeros(images, width, width, dtype=torch.float64)
        rows = []
        for column in flat.sum(0):
            found = torch.autograd.grad(column, carrying, retain_graph=True, allow_unused=True)
            parts = [
                torch.zeros_like(leaf) if part is None else part
                for part, leaf in zip(found, carrying, strict=True)
            ]
            rows.append(torch.cat([part.reshape(images, -1) for part in parts], 1))
    hessian = torch.stack(rows, 1).detach().double()
    return (hessian + hessian.transpose(1, 2)) / 2


def _root(hessians: Tensor) -> Tensor:
    """The symmetric root: unlike eigenvectors, it is unique, and rounding moves it little."""
    values, vectors = torch.linalg.eigh(hessians)
    scaled = torch.mul(vectors, values.clamp_min(0).sqrt()[:, None, :])
    return torch.bmm(scaled, vectors.transpose(1, 2))


def hessian_times(
    model: nn.Module,
    batches: Batches,
    loss: Callable[[object, object, int], Tensor],
    weights: Sequence[nn.Parameter],
    direction: Sequence[Tensor],
) -> list[Tensor]:
    """Hessian of the mean loss over all images times a direction in the space of these weights.

    A pass over the data of its own, with a second differentiation of every batch's gradient.

    Args:
        model: The network.
        batches: The data.
        loss: `loss(outputs, targets, number of the batch)`, a mean over the batch.
        weights: What is differentiated.
        direction: One tensor for each weight.

    Returns:
        One tensor for each weight, float64.
    """
    totals = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    images = 0
    for number, (inputs, targets) in enumerate(read(model, batches)):
        count = batch_size(inputs, targets)
        value = loss(run_batch(model, inputs, number), targets, number)
        slopes = _twice_differentiable(value, weights)
        along = sum(
            (
                (s * d.to(s.dtype)).sum()
                for s, d in zip(slopes, direction, strict=True)
                if s is not None
            ),
            start=torch.zeros((), device=value.device, dtype=value.dtype),
        )
        if along.requires_grad:
            found = torch.autograd.grad(along, weights, allow_unused=True)
            for total, part in zip(totals, found, strict=True):
                if part is not None:
                    total.add_(part.detach(), alpha=count)
        images += count
    return [total / images for total in totals]


def _twice_differentiable(value: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
    try:
        return torch.autograd.grad(value, weights, create_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "checkpoint" not in str(error):
            raise
        raise SelectorError(
            "reentrant gradient checkpointing cannot be differentiated twice, as `grasp` needs; "
            "use checkpoint(..., use_reentrant=False), switch it off, or leave the metric out"
        ) from error


def flow_gradients(model: nn.Module, inputs: object, names: Sequence[str]) -> dict[str, Tensor]:
    """SynFlow: what flows through each weight when all are absolute and the input is all ones.

    In float64, since sums of absolute weights grow with every layer. Nothing of the model changes.

    Args:
        model: The network; left as it is.
        inputs: One image, for its shape; its values are not used.
        names: Layers whose weights are differentiated.

    Returns:
        Layer -> absolute weight x gradient, like the weight, float64.

    Raises:
        SelectorError: The flow overflows, or does not reach a layer.
    """
    state = itertools.chain(model.named_parameters(), model.named_buffers())
    absolute = {
        name: tensor.detach().abs().double().requires_grad_(False)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in state
    }
    chosen = [absolute[f"{name}.weight"].requires_grad_(True) for name in names]

    def ones(leaf: object) -> object:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            # With a gradient: reentrant checkpointing passes none on otherwise.
            return torch.ones_like(leaf, dtype=torch.float64).requires_grad_(True)
        return leaf

    arguments = pytree.tree_map(ones, inputs)
    positional = tuple(arguments) if isinstance(arguments, tuple | list) else (arguments,)
    named = arguments if isinstance(arguments, dict) else None
    flow = _Flow(model)
    inside = {f"model.{name}": tensor for name, tensor in absolute.items()}
    with torch.enable_grad():
        torch.func.functional_call(flow, inside, () if named is not None else positional, named)
    flows = {}
    for name, weight in zip(names, chosen, strict=True):
        if weight.grad is None:
            raise SelectorError(f"synflow: the outputs do not depend on layer {name!r}")
        flows[name] = (weight.detach() * weight.grad).cpu()
    return flows


class _Flow(nn.Module):
    """Forward and backward in one call: checkpointing runs layers again in the backward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: object, **named: object) -> None:
        total = torch.stack(
            [leaf.sum() for leaf in output_leaves(self.model(*args, **named))]
        ).sum()
        if not bool(torch.isfinite(total)):
            raise SelectorError("synflow: the flow of absolute weights overflows; leave it out")
        total.backward()  # type: ignore[no-untyped-call]
