"""Which parameters take a gradient in a pass, and which of their gradients are computed."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.autograd.graph import Node


def lowest_leaves(value: Tensor, parameters: Iterable[Tensor]) -> set[int]:
    """Of some parameters, those whose gradients pass everything that leads to any of them.

    The gradients of activations alone are asked for by way of these: a parameter is left out where
    the operation that reads it has another input which leads to a parameter, since gradients pass
    the operation on their way there. The others' own gradients are then never computed.

    Args:
        value: What is differentiated.
        parameters: Leaves of its graph.

    Returns:
        The `id` of each parameter.
    """
    known = {id(parameter) for parameter in parameters}

    def leaf(node: Node) -> int | None:
        """The parameter that a node stands for, if any."""
        found = id(getattr(node, "variable", None))
        return found if found in known else None

    leads: dict[Node, bool] = {}
    """Whether a node, or one below it, is a parameter's."""
    lowest: set[int] = set()
    waiting = [] if value.grad_fn is None else [value.grad_fn]
    while waiting:
        node = waiting[-1]
        below = [following for following, _ in node.next_functions if following is not None]
        new = [one for one in below if one not in leads]
        if new:
            waiting += new
            continue
        waiting.pop()
        if node in leads:
            continue
        leads[node] = leaf(node) is not None or any(leads[one] for one in below)
        if not any(leads[one] for one in below if leaf(one) is None):
            lowest |= {own for one in below if (own := leaf(one)) is not None}
    return lowest


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
