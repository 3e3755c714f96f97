"""A network's graph of operations, traced by Torch-Pruning through autograd.

The only file that knows that graph. What it cannot follow is refused where it lies: an operation
whose mapping of channels fails spoils the walks that pass it, and no other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.forward import call, float_tensors
from selector.errors import SelectorError
from selector.network.layers import CONVOLUTION, is_grouped, layer_width
from selector.typing import Side

STEPS_PER_OPERATION = 20
"""A walk that takes more steps than this for each operation of the network goes in circles."""
MOST_POSITIONS = 2**18
"""Of all channels of a layer in one place: more than any flattened map that a layer reads has."""


class UnfollowableError(Exception):
    """The channels of a layer cannot be followed; the message says why."""


class LostError(UnfollowableError):
    """The graph has no notion of what the network does; others of its channels take long, too."""


@dataclass(frozen=True)
class Reached:
    """Where the outputs of a root arrive: positions on a side of a layer or operation."""

    module: Any
    side: Side
    indices: tuple[int, ...]
    roots: tuple[int, ...]
    """For every position, the output of the root that it belongs to."""


class TracedGraph:
    """Which layers the outputs of every layer reach, and where."""

    def __init__(self, model: nn.Module, inputs: object, *, training: bool = False) -> None:
        """Trace a network, which is left as found.

        Raises:
            SelectorError: The network cannot be traced.
        """
        leaves, spec = pytree.tree_flatten(inputs)
        fresh = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

        def run(model: nn.Module, inputs: object) -> object:
            model.train(training)
            return call(model, inputs)

        self._graph = _new_graph()
        try:
            with _hooks_as_found(model), _zero_padded(model), torch.enable_grad():
                # A slope for all channels would be taken for something that has channels.
                slopes = {id(layer.weight) for layer in _single_slopes(model)}
                for parameter, _ in trained:
                    if parameter.is_floating_point() or parameter.is_complex():
                        parameter.requires_grad_(id(parameter) not in slopes)
                self._graph.build(model, pytree.tree_unflatten(fresh, spec), run)
        except Exception as error:
            raise SelectorError(
                f"the network cannot be traced ({type(error).__name__}: {error}); "
                "channels are followed through autograd, so the forward pass must not run under "
                "no_grad or detach its activations"
            ) from error
        finally:
            for parameter, flag in trained:
                parameter.requires_grad_(flag)

    def __contains__(self, module: nn.Module) -> bool:
        return module in self._graph.module2node

    def follow(self, module: nn.Module) -> list[Reached]:
        """Where all outputs of a layer arrive; the layer itself comes first.

        Raises:
            UnfollowableError: The channels pass something that cannot be followed.
        """
        found: dict[tuple[Any, Any], dict[int, int]] = {}
        for node, handler, indices in self._walk(module):
            places = found.setdefault((node, handler), {})
            for index, root in indices:
                places.setdefault(index, root)
        return [
            Reached(node.module, self._side(handler), tuple(places), tuple(places.values()))
            for (node, handler), places in found.items()
        ]

    def _walk(self, module: nn.Module) -> list[tuple[Any, Any, list[Any]]]:
        """Every step from the outputs of a layer: node, what cuts it, (position, root) pairs."""
        from torch_pruning._helpers import _HybridIndex

        graph = self._graph
        width = layer_width(module, "out")
        root = graph.module2node[module]
        first = graph.get_pruner_of_module(module).prune_out_channels
        todo = [(root, first, [_HybridIndex(idx=i, root_idx=i) for i in range(width)])]
        steps = list(todo)
        seen: set[tuple[Any, Any, tuple[Any, ...]]] = {(root, first, tuple(todo[0][2]))}
        most = STEPS_PER_OPERATION * len(graph.module2node)
        while todo:
            node, handler, indices = todo.pop()
            if node in graph.unmapped:
                what = type(node.module).__name__.strip("_").removesuffix("Op").lower()
                raise UnfollowableError(
                    f"its channels pass a {what} that Torch-Pruning cannot follow "
                    f"({graph.unmapped[node]})"
                )
            for step in node.dependencies:
                if not step.is_triggered_by(handler):
                    continue
                mapped = _mapped(step, indices)
                key = step.target, step.handler, tuple(mapped)
                if not mapped or key in seen:
                    continue
                seen.add(key)
                steps.append((step.target, step.handler, mapped))
                todo.append(steps[-1])
                if len(mapped) > MOST_POSITIONS:
                    raise LostError(
                        "Torch-Pruning takes each of its channels for many: they pass code that "
                        "runs over channels as over positions"
                    )
            if len(steps) > most:
                raise UnfollowableError(
                    "Torch-Pruning follows its channels in circles: they pass slices or padding "
                    "that it takes for slices of channels"
                )
        return steps

    def _side(self, handler: Any) -> Side:
        if not self._graph.is_out_channel_pruning_fn(handler):
            return "in"
        return "both" if self._graph.is_in_channel_pruning_fn(handler) else "out"


def _mapped(step: Any, indices: Sequence[Any]) -> list[Any]:
    """Positions in the target of a step."""
    found = indices
    for mapping in step.index_mapping:
        if mapping is not None:
            try:
                found = mapping(found)
            except Exception as error:
                raise UnfollowableError(
                    f"Torch-Pruning cannot follow its channels: {error!r}"
                ) from error
    return list(found)


def _new_graph() -> Any:
    """An empty graph of Torch-Pruning, with our notions of what cuts a layer."""
    import torch_pruning as tp
    from torch_pruning.dependency import index_mapping, shape_infer

    kinds = tp.ops.OPTYPE
    updates = {
        kinds.CONCAT: index_mapping.update_concat_index_mapping,
        kinds.SPLIT: index_mapping.update_split_index_mapping,
        kinds.RESHAPE: index_mapping.update_reshape_index_mapping,
        kinds.UNBIND: index_mapping.update_unbind_index_mapping,
        kinds.EXPAND: index_mapping.update_expand_index_mapping,
        kinds.SLICE: index_mapping.update_slice_index_mapping,
    }

    class Graph(tp.DependencyGraph):  # type: ignore[misc]
        """Torch-Pruning's graph; an operation that it cannot map is noted in `unmapped`.

        Torch-Pruning looks at the outputs alone, and takes a grouped convolution with a single
        output in each group for depthwise, however many inputs there are in each. It takes the one
        slope of a PReLU for one channel; here such a layer is an operation like any other.
        """

        def get_pruner_of_module(self, module: nn.Module) -> Any:
            """The functions that cut a layer."""
            if is_grouped(module):
                return self.REGISTERED_PRUNERS[kinds.CONV]
            return super().get_pruner_of_module(module)

        def build(self, model: nn.Module, inputs: object, run: Any) -> None:
            """Trace a network, as `build_dependency` does, and go on where a mapping fails."""
            self.verbose, self.model = False, model
            self.ignored_params: list[nn.Parameter] = []
            self.IGNORED_LAYERS_IN_TRACING = _single_slopes(model)
            self._module2name = {module: name for name, module in model.named_modules()}
            self._param_to_name, self.unwrapped_parameters = self._detect_unwrapped_parameters(None)
            self.module2node = self._trace(model, inputs, run, _tensors_with_gradient)
            self._build_dependency(self.module2node)
            self.unmapped: dict[Any, str] = {}
            nodes = list(self.module2node.values())
            try:
                shape_infer.init_shape_information(self)
            except Exception as error:
                for node in nodes:
                    if node.type == kinds.SPLIT:
                        self.unmapped[node] = repr(error)
            for node in nodes:
                if node.type in updates and node not in self.unmapped:
                    try:
                        updates[node.type](self, node)
                    except Exception as error:
                        self.unmapped[node] = repr(error)

    return Graph()


def _single_slopes(model: nn.Module) -> list[nn.PReLU]:
    """PReLU layers with one slope for all channels."""
    layers = [module for module in model.modules() if isinstance(module, nn.PReLU)]
    return [layer for layer in layers if layer.num_parameters == 1]


def _tensors_with_gradient(outputs: object) -> list[Tensor]:
    tensors = [tensor for tensor in float_tensors(outputs) if tensor.grad_fn is not None]
    if not tensors:
        raise SelectorError("no output of the network has a gradient")
    return tensors


@contextmanager
def _zero_padded(model: nn.Module) -> Iterator[None]:
    """Context in which every convolution pads with zeros.

    Shapes stay the same; circular padding is made of slices, which Torch-Pruning takes for slices
    of channels.
    """
    kept = [(m, m.padding_mode) for m in model.modules() if isinstance(m, CONVOLUTION)]
    try:
        for layer, _ in kept:
            layer.padding_mode = "zeros"
        yield
    finally:
        for layer, mode in kept:
            layer.padding_mode = mode


@contextmanager
def _hooks_as_found(model: nn.Module) -> Iterator[None]:
    """Context after which modules have the hooks that they came with, whatever happens in it."""
    kept = [(module, set(module._forward_hooks)) for module in model.modules()]
    try:
        yield
    finally:
        for module, hooks in kept:
            for key in set(module._forward_hooks) - hooks:
                del module._forward_hooks[key]
