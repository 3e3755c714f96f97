"""The fast engine: a batch's values are kept, and what depends on a removal is computed again."""

from collections.abc import Iterator, Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from selector.groups import CONVOLUTION, Group, input_dimension
from selector.masked_engine import Masked, Removal
from selector.reading import batch_size, device_of
from selector.stepwise import Runner, Steps, UntraceableError, apply_layer, take_apart

TOLERANCE = 1e-3
"""Largest difference to the masked network, relative to its largest output (float32)."""

WORTH_GATHERING = 0.2
"""Share of a layer's inputs from which copying the others together costs less than reading all."""

CACHE_BYTES = {"cpu": 2**21}
"""Largest value of a batch that is read and written at full speed; larger batches go in parts."""

_steps: WeakKeyDictionary[nn.Module, Steps | str] = WeakKeyDictionary()
_held: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()
"""Network -> group name -> whether its trace agreed with the masked network when it was tried."""


class Fast:
    """Keep a batch's values; compute again only what depends on the layers that read the channels.

    Each group is tried once against the masked network: where that differs (a trace that does not
    hold for these inputs), the group is run masked from then on.
    """

    def __init__(self, model: nn.Module, together: int = 1, check: bool = True) -> None:
        """Trace the network, or find it traced.

        Args:
            model: The network, in evaluation mode; its weights must not change while this is used.
            together: Candidates of a group that are run as one batch.
            check: Try groups again that earlier engines of this network have tried.

        Raises:
            UntraceableError: It cannot be taken apart.
        """
        self._masked = Masked(model)
        known = _steps.get(model)
        if known is None:
            try:
                known = take_apart(model)
            except UntraceableError as error:
                known = str(error)
            _steps[model] = known
        if isinstance(known, str):
            raise UntraceableError(known)
        self._runner = Runner(model, known)
        self.together = max(1, together)
        self._device = device_of(model).type
        self._plans: dict[Group, _Plan] = {}
        self._slow: set[Group] = set()
        self._verdicts = _held.setdefault(model, {})
        self._check = check

    @property
    def fallen_back(self) -> list[str]:
        """Groups for which the trace did not hold."""
        return [group.name for group in self._slow]

    def load(self, inputs: object) -> object:
        """Take a batch; its outputs with all channels."""
        self._masked.take(inputs)
        values = self._runner.inputs(inputs)
        output: object = None
        for node in self._runner.steps.nodes:
            if node.op != "placeholder":
                values[node] = output = self._runner.run(node, values)
        self._values, self._images = values, batch_size(inputs)
        return output

    def bytes_kept(self) -> int:
        """Memory of the values of the batch at hand."""
        tensors = pytree.tree_leaves(list(self._values.values()))
        sizes = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in tensors
            if isinstance(t, Tensor)
        }
        return sum(sizes.values())

    def images_in_cache(self, images: int) -> int | None:
        """Images at which the largest value of the batch at hand would fit the cache.

        Args:
            images: Images of the batch at hand.
        """
        size = CACHE_BYTES.get(self._device)
        tensors = pytree.tree_leaves(list(self._values.values()))
        largest = max(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
        return None if size is None else max(1, int(size * images / largest))

    def outputs(self, group: Group, removals: Sequence[Removal]) -> list[object]:
        """The batch's outputs after each of some removals from one group."""
        if group not in self._plans and group not in self._slow:
            self._plans[group] = _Plan(self._runner, group)
            if self._check or group.name not in self._verdicts:
                agrees = self._agrees(group, removals[: self.together])
                self._verdicts[group.name] = agrees
            if not self._verdicts[group.name]:
                self._slow.add(group)
        if group in self._slow:
            return self._masked.outputs(group, removals)
        found: list[object] = []
        for start in range(0, len(removals), self.together):
            found += self._some(group, removals[start : start + self.together])
        return found

    def _some(self, group: Group, removals: Sequence[Removal]) -> list[object]:
        output = self._plans[group].run(self._values, removals, self._images)
        return [_part(output, k, self._images) for k in range(len(removals))]

    def _agrees(self, group: Group, removals: Sequence[Removal]) -> bool:
        """Whether the last of some candidates, run together, is what the masked network gives."""
        try:
            *_, mine = self._some(group, removals)
        except Exception:  # Whatever a wrong trace leads to, the masked network is right.
            return False
        (right,) = self._masked.outputs(group, removals[-1:])
        return same_outputs(mine, right)


def same_outputs(one: object, other: object) -> bool:
    """Whether two outputs of a network are the same, to `TOLERANCE` of the largest value."""
    left, right = (pytree.tree_leaves(outputs) for outputs in (one, other))
    return len(left) == len(right) and all(
        not isinstance(b, Tensor)
        or (
            isinstance(a, Tensor)
            and a.shape == b.shape
            and _difference(a, b) <= TOLERANCE * _difference(b, torch.zeros_like(b))
        )
        for a, b in zip(left, right, strict=True)
    )


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max()) if one.numel() else 0.0


def _part(values: object, number: int, images: int) -> object:
    def rows(leaf: object) -> object:
        if isinstance(leaf, Tensor) and leaf.ndim:
            return leaf[number * images : (number + 1) * images]
        return leaf

    found: object = pytree.tree_map(rows, values)
    return found


class _Plan:
    """What must be computed again when channels of one group go."""

    def __init__(self, runner: Runner, group: Group) -> None:
        self._runner = runner
        self._parts = {part.layer: part for part in group.slices if part.side == "in"}
        self._nodes = runner.steps.dependents(tuple(self._parts))
        self._changed = set(self._nodes)
        self._width = group.channels

    def run(
        self, values: Mapping[fx.Node, object], removals: Sequence[Removal], images: int
    ) -> object:
        """The network's outputs, the removals one after the other along the batch dimension."""
        known = _Overlay(values, len(removals), images)
        output: object = None
        node: fx.Node
        for node in self._nodes:
            if node.op == "call_module" and node.target in self._parts:
                known.changed[node] = output = self._consumer(node, known, removals)
            else:
                known.changed[node] = output = self._runner.run(node, known)
        return output

    def _consumer(self, node: fx.Node, known: "_Overlay", removals: Sequence[Removal]) -> Tensor:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source not in self._changed:
            inputs, whole = known.base[source], known.base[node]
            assert isinstance(inputs, Tensor)
            assert isinstance(whole, Tensor)
            outputs = [self._alone(node, inputs, channels, whole) for channels, _ in removals]
            output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        elif len(removals) == 1:
            output = self._alone(node, known.tensor(source), removals[0][0], None)
        else:
            output = self._together(node, known.tensor(source), removals)
        shift = self._shift(node, removals, output)
        return output if shift is None else output + shift

    def _alone(
        self, node: fx.Node, inputs: Tensor, channels: Sequence[int], whole: Tensor | None
    ) -> Tensor:
        """A consumer's outputs for one candidate, the cheapest way there is.

        Args:
            node: The consumer.
            inputs: What it reads.
            channels: The candidate.
            whole: Its outputs with all channels, where its inputs have not changed.
        """
        layer, (weight, bias) = self._runner.module(node), self._runner.weight(node)
        gone = self._indices(str(node.target), channels)
        dimension = 1 if isinstance(layer, CONVOLUTION) else inputs.ndim - 1
        share = len(gone) / inputs.shape[dimension]
        if isinstance(layer, CONVOLUTION) and layer.groups > 1:
            columns = weight.shape[input_dimension(layer)]
            index = torch.tensor(sorted({i % columns for i in gone}), device=weight.device)
            masked = weight.index_fill(input_dimension(layer), index, 0)
            return apply_layer(layer, inputs, masked, bias)
        if whole is not None and share <= 0.5:
            # What the removed channels added: a layer of them alone.
            return whole - self._of_some(layer, inputs, gone, weight, None)
        if share >= WORTH_GATHERING:
            left = sorted(set(range(inputs.shape[dimension])) - set(gone))
            return self._of_some(layer, inputs, left, weight, bias)
        index = torch.tensor(gone, device=weight.device)
        masked = weight.index_fill(input_dimension(layer), index, 0)
        return apply_layer(layer, inputs, masked, bias)

    @staticmethod
    def _of_some(
        layer: nn.Module,
        inputs: Tensor,
        indices: Sequence[int],
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """A layer that reads some of its inputs only."""
        index = torch.tensor(indices, device=inputs.device)
        dimension = 1 if isinstance(layer, CONVOLUTION) else inputs.ndim - 1
        read = weight.index_select(input_dimension(layer), index)
        return apply_layer(layer, inputs.index_select(dimension, index), read, bias)

    def _together(self, node: fx.Node, inputs: Tensor, removals: Sequence[Removal]) -> Tensor:
        """A consumer's outputs for several candidates that have changed its inputs."""
        layer, (weight, bias) = self._runner.module(node), self._runner.weight(node)
        kept = [self._kept(str(node.target), channels, inputs) for channels, _ in removals]
        masks = torch.stack(kept).repeat_interleave(len(inputs) // len(removals), 0)
        shape = [len(inputs), *[1] * (inputs.ndim - 1)]
        shape[1 if isinstance(layer, CONVOLUTION) else -1] = -1
        return apply_layer(layer, inputs * masks.view(shape), weight, bias)

    def _indices(self, layer: str, channels: Sequence[int]) -> list[int]:
        part, gone = self._parts[layer], set(channels)
        return [i for i, c in zip(part.indices, part.channels, strict=True) if c in gone]

    def _kept(self, layer: str, channels: Sequence[int], inputs: Tensor) -> Tensor:
        module = self._runner.module(self._runner.steps.layers[layer][0])
        width = inputs.shape[1 if isinstance(module, CONVOLUTION) else -1]
        mask = torch.ones(width, dtype=inputs.dtype, device=inputs.device)
        mask[self._indices(layer, channels)] = 0
        return mask

    def _shift(self, node: fx.Node, removals: Sequence[Removal], output: Tensor) -> Tensor | None:
        name = str(node.target)
        if not any(shift.layer == name for _, shifts in removals for shift in shifts):
            return None
        width = self._runner.weight(node)[0].shape[0]
        rows = []
        for _, shifts in removals:
            row = output.new_zeros(width)
            for shift in shifts:
                if shift.layer == name:
                    row = row + shift.values.to(row)
            scale = self._runner.scale(name)
            rows.append(row if scale is None else row * scale)
        table = torch.stack(rows).repeat_interleave(len(output) // len(removals), 0)
        shape = [len(output), *[1] * (output.ndim - 1)]
        shape[1 if isinstance(self._runner.module(node), CONVOLUTION) else -1] = -1
        return table.view(shape)


class _Overlay(Mapping[fx.Node, object]):
    """Values of a batch, under those that have changed; unchanged ones repeated as often."""

    def __init__(self, values: Mapping[fx.Node, object], times: int, images: int) -> None:
        self.base, self.times, self.images = values, times, images
        self.changed: dict[fx.Node, object] = {}

    def __getitem__(self, node: fx.Node) -> object:
        if node in self.changed:
            return self.changed[node]
        return self.base[node] if self.times == 1 else self._repeated(self.base[node])

    def _repeated(self, value: object) -> object:
        def repeat(leaf: object) -> object:
            if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == self.images:
                return leaf.repeat(self.times, *[1] * (leaf.ndim - 1))
            return leaf

        found: object = pytree.tree_map(repeat, value)
        return found

    def tensor(self, node: fx.Node) -> Tensor:
        """A value that must be a tensor."""
        found = self[node]
        assert isinstance(found, Tensor)
        return found

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)
