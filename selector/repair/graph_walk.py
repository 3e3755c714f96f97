"""A walk along a torch.fx graph, node by node: what was computed for one layer serves the next."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from selector.data.batches import Batches, batch_size, first_batch, rows
from selector.data.forward import device_of, read, to_device
from selector.network.fx_tracing import ThreadedTracer
from selector.network.layers import CONVOLUTION, NORMALISATION
from selector.repair.walk import HookWalk, Visit, copied, first_argument


class UnwalkableError(Exception):
    """The networks cannot be walked node by node; the message says why."""


class _LayersAsLeaves(ThreadedTracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph."""
        layer = isinstance(m, (CONVOLUTION, NORMALISATION, nn.Linear))
        return layer or super().is_leaf_module(m, module_qualified_name)


class _Side:
    """One of the two networks: its graph, and what of it is known for one batch."""

    def __init__(self, model: nn.Module) -> None:
        try:
            self.graph = _LayersAsLeaves().trace(model)
        except Exception as error:
            raise UnwalkableError(f"torch.fx cannot trace it: {error}") from error
        self.nodes = tuple(self.graph.nodes)
        self._interpreter = fx.Interpreter(model, garbage_collect_values=False, graph=self.graph)
        place = {node: number for number, node in enumerate(self.nodes)}
        self.last_use = {
            node: max((place[user] for user in node.users), default=-1) for node in self.nodes
        }

    def begin(self, inputs: object) -> dict[fx.Node, Any]:
        """The values of the network's own inputs, copied: networks may write in place."""
        places = [node for node in self.nodes if node.op == "placeholder"]
        inputs = copied(inputs)
        if isinstance(inputs, Mapping):
            given = {n: inputs[cast(str, n.target)] for n in places if n.target in inputs}
        else:
            sequence = inputs if isinstance(inputs, tuple | list) else (inputs,)
            given = dict(zip(places, sequence, strict=False))
        for node in places:
            if node not in given and not node.args:
                raise UnwalkableError(f"its input {node.target!r} is not given")
        return {node: given[node] if node in given else node.args[0] for node in places}

    def run(self, values: dict[fx.Node, Any], start: int, stop: int) -> None:
        """Run the nodes [start, stop) and forget what nothing reads afterwards."""
        for number in range(start, stop):
            self.run_node(values, number)
            for node in [n for n in values if self.last_use[n] <= number]:
                del values[node]

    def run_node(self, values: dict[fx.Node, Any], number: int) -> Any:
        """The value of one node, computed unless it is known."""
        node = self.nodes[number]
        if node not in values:
            self._interpreter.env = cast(Any, values)
            values[node] = self._interpreter.run_node(node)
        return values[node]

    def read_by(self, values: Mapping[fx.Node, Any], number: int) -> object:
        """What the layer that a node calls is called with."""
        node = self.nodes[number]
        source = first_argument(node.args, node.kwargs)
        return values[source] if isinstance(source, fx.Node) else None


@dataclass(eq=False)
class _HeldValue:
    """What is known of one batch, right before the node where the walk stands."""

    start: int
    stop: int
    values: tuple[dict[fx.Node, Any], dict[fx.Node, Any]]


class GraphWalk:
    """Node by node; only values that are still to be read are kept, of both networks.

    Where these would need more than `memory_bytes`, they are kept as they were at an earlier layer,
    and batches are computed from there, one at a time.
    """

    def __init__(
        self, original: nn.Module, pruned: nn.Module, batches: Batches, memory_bytes: int
    ) -> None:
        self._sides = _Side(original), _Side(pruned)
        _check_alike(*(side.nodes for side in self._sides))
        self._at = 0
        self._held: list[_HeldValue] = []
        start = 0
        for inputs, targets in read(original, batches):
            stop = start + batch_size(inputs, targets)
            first, second = (side.begin(inputs) for side in self._sides)
            self._held.append(_HeldValue(start, stop, (first, second)))
            start = stop
        try:
            sizes = self._sizes(original, batches)
        except Exception as error:
            raise UnwalkableError(f"its graph does not run: {error}") from error
        self._fits = [size * start <= memory_bytes for size in sizes]
        self._first_call = {
            str(node.target): number
            for number, node in reversed(list(enumerate(self._sides[0].nodes)))
            if node.op == "call_module"
        }
        self._hooks = HookWalk(original, pruned, batches)

    def _sizes(self, model: nn.Module, batches: Batches) -> list[float]:
        """Bytes an image of what is to be kept before each node, tried on a few images."""
        inputs = to_device(first_batch(batches)[0], device_of(model))
        images = min(4, batch_size(inputs))
        totals = [0.0] * len(self._sides[0].nodes)
        for side in self._sides:
            values = side.begin(rows(inputs, 0, images))
            for number in range(len(side.nodes)):
                storages = {
                    t.untyped_storage().data_ptr(): t
                    for t in pytree.tree_leaves(values)
                    if isinstance(t, Tensor)
                }
                totals[number] += sum(t.nbytes for t in storages.values()) / images
                side.run(values, number, number + 1)
        return totals

    def visits(self, layer: str) -> Iterator[Visit]:
        """The layer's first call on every batch."""
        target = self._first_call.get(layer)
        if target is None:
            # Called within a module that is one node to torch.fx.
            yield from self._hooks.visits(layer)
            return
        if self._fits[target]:
            for held in self._held:
                for side, values in zip(self._sides, held.values, strict=True):
                    side.run(values, self._at, target)
            self._at = target
        for held in self._held:
            theirs, ours = held.values
            if self._at < target:
                theirs, ours = copied(theirs), copied(ours)
                for side, values in zip(self._sides, (theirs, ours), strict=True):
                    side.run(values, self._at, target)
            original_inputs = self._sides[0].read_by(theirs, target)
            inputs = self._sides[1].read_by(ours, target)
            output = self._sides[0].run_node(theirs, target)
            if all(isinstance(v, Tensor) for v in (inputs, original_inputs, output)):
                known = cast(Tensor, inputs), cast(Tensor, original_inputs), output
                yield Visit(held.start, held.stop, 0, *known)


def _check_alike(first: Sequence[fx.Node], second: Sequence[fx.Node]) -> None:
    for one, two in zip(first, second, strict=False):
        if (one.op, str(one.target)) != (two.op, str(two.target)):
            raise UnwalkableError(f"the unpruned runs {one.target}, the pruned {two.target}")
    if len(first) != len(second):
        raise UnwalkableError("the two do not take the same steps")
