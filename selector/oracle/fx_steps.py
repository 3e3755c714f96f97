"""A network as a list of steps, so that only what depends on a changed layer is computed again.

Traced with torch.fx. BatchNorm behind a convolution is folded into it, and nothing is written in
place, so that every value of a batch can be kept and used again.
"""

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from selector.network.fx_tracing import ThreadedTracer
from selector.network.layers import CONVOLUTION, NORMALISATION

Values = Mapping[fx.Node, object]


class UntraceableError(Exception):
    """The network cannot be taken apart into steps; the message says why."""


@dataclass(frozen=True)
class Steps:
    """The nodes of a network in the order in which they run."""

    graph: fx.Graph
    nodes: tuple[fx.Node, ...]
    layers: Mapping[str, tuple[fx.Node, ...]]
    """Layer -> the nodes that call it."""
    folded: Mapping[fx.Node, fx.Node]
    """BatchNorm node -> node of the convolution that it is folded into."""

    def dependents(self, layers: Sequence[str]) -> tuple[fx.Node, ...]:
        """Calls of these layers and all that depends on them, in order."""
        changed = {node for layer in layers for node in self.layers.get(layer, ())}
        for node in self.nodes:
            if any(source in changed for source in node.all_input_nodes):
                changed.add(node)
        return tuple(node for node in self.nodes if node in changed)


_OUT_OF_PLACE: Mapping[object, Callable[..., object]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
}


def take_apart(model: nn.Module) -> Steps:
    """Trace a network in evaluation mode.

    Raises:
        UntraceableError: Control flow that depends on values, or a tensor written in place.
    """
    try:
        graph = ThreadedTracer().trace(model)
    except Exception as error:
        raise UntraceableError(f"torch.fx cannot trace it: {error}") from error
    layers: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            layers.setdefault(cast(str, node.target), []).append(node)
        elif node.op == "call_function":
            name = getattr(node.target, "__name__", "")
            if node.target is operator.setitem or (
                name.endswith("_") and not name.endswith("__") and node.target not in _OUT_OF_PLACE
            ):
                raise UntraceableError(f"it writes in place with {name}")
        elif node.op == "call_method" and node.target == "__setitem__":
            raise UntraceableError("it writes in place with an index")
    return Steps(
        graph,
        tuple(graph.nodes),
        {name: tuple(found) for name, found in layers.items()},
        _folds(model, graph, layers),
    )


def _folds(
    model: nn.Module, graph: fx.Graph, layers: Mapping[str, Sequence[fx.Node]]
) -> dict[fx.Node, fx.Node]:
    folds = {}
    for node in graph.nodes:
        if node.op != "call_module" or len(node.args) + len(node.kwargs) != 1:
            continue
        source = source_of(node)
        if source.op != "call_module":
            continue
        norm = model.get_submodule(cast(str, node.target))
        layer = model.get_submodule(cast(str, source.target))
        once = all(len(layers[cast(str, n.target)]) == 1 for n in (node, source))
        fits = isinstance(norm, NORMALISATION) and norm.track_running_stats
        if fits and once and len(source.users) == 1 and _is_plain_convolution(layer):
            folds[node] = source
    return folds


def _is_plain_convolution(layer: nn.Module) -> bool:
    return type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and not hasattr(
        layer, "parametrizations"
    )


class StepRunner(fx.Interpreter):
    """The steps with a network's present weights: folded once, run many times."""

    def __init__(self, model: nn.Module, steps: Steps) -> None:
        super().__init__(cast(fx.GraphModule, model), False, steps.graph)
        self.steps = steps
        self._layers = {name: _out_of_place(model.get_submodule(name)) for name in steps.layers}
        self._weights: dict[fx.Node, tuple[Tensor, Tensor]] = {}
        self._scales: dict[str, Tensor] = {}
        self._folded: dict[fx.Node, fx.Node] = {}
        for norm_node, node in steps.folded.items():
            layer = cast(nn.Conv2d, model.get_submodule(cast(str, node.target)))
            norm = cast(nn.BatchNorm2d, model.get_submodule(cast(str, norm_node.target)))
            if norm.running_mean is None:
                continue  # It goes by every batch's own statistics.
            self._folded[norm_node] = node
            self._weights[node] = _fold(layer, norm)
            self._scales[cast(str, node.target)] = _scale(norm)

    def scale(self, layer: str) -> Tensor | None:
        """What BatchNorm multiplies a layer's outputs by, where it is folded into it."""
        return self._scales.get(layer)

    def weight(self, node: fx.Node) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with which a node's layer runs."""
        if node in self._weights:
            return self._weights[node]
        layer = self.layer(node)
        return cast(Tensor, layer.weight), cast(Tensor | None, layer.bias)

    def layer(self, node: fx.Node) -> nn.Module:
        """The layer that a node calls."""
        return self._layers[cast(str, node.target)]

    def inputs(self, arguments: object) -> dict[fx.Node, object]:
        """The values of the network's own inputs."""
        places = [node for node in self.steps.nodes if node.op == "placeholder"]
        if isinstance(arguments, Mapping):
            given = {n: arguments[cast(str, n.target)] for n in places if n.target in arguments}
        else:
            sequence = arguments if isinstance(arguments, tuple | list) else (arguments,)
            given = dict(zip(places, sequence, strict=False))
        for node in places:
            if node not in given:
                if not node.args:
                    raise UntraceableError(f"its input {node.target!r} is not given")
                given[node] = node.args[0]
        return given

    def value(self, node: fx.Node, values: Values) -> object:
        """The value of one node, from those of the nodes before it."""
        if node in self._folded:
            return values[self._folded[node]]
        if node in self._weights:
            weight, bias = self._weights[node]
            return apply_layer(
                self.layer(node), cast(Tensor, values[source_of(node)]), weight, bias
            )
        self.env = cast(dict[fx.Node, Any], values)
        return self.run_node(node)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a layer, out of place."""
        return self._layers[target](*args, **kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a function, out of place."""
        return _OUT_OF_PLACE.get(target, target)(*args, **_not_in_place(kwargs))

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a method, out of place."""
        name = target[:-1] if target.endswith("_") and not target.endswith("__") else target
        return getattr(args[0], name)(*args[1:], **_not_in_place(kwargs))


def _not_in_place(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: False if name == "inplace" else value for name, value in kwargs.items()}


def source_of(node: fx.Node) -> fx.Node:
    """The node that a layer reads, which is given by position or by name."""
    found = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(found, fx.Node)
    return found


def apply_layer(layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution or linear layer with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(inputs, weight, bias)
    assert isinstance(layer, CONVOLUTION)
    if layer.transposed:
        own = {"weight": weight}
        if isinstance(layer.bias, Tensor):
            own["bias"] = torch.zeros_like(layer.bias) if bias is None else bias
        return cast(Tensor, torch.func.functional_call(layer, own, (inputs,)))
    return cast(Tensor, cast(Any, layer)._conv_forward(inputs, weight, bias))


def _fold(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its BatchNorm folded into them."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        layer.weight,
        layer.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    return weight.detach(), bias.detach()


def _scale(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    return (scale if norm.weight is None else scale * norm.weight).detach()


def _out_of_place(layer: nn.Module) -> nn.Module:
    if not getattr(layer, "inplace", False):
        return layer
    twin = copy.copy(layer)
    twin.inplace = False  # type: ignore[assignment]
    return twin
