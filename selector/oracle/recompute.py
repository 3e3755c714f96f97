"""What must be computed again of a network when channels of one group go, and how."""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from selector.network.groups import Group
from selector.network.layers import (
    CONVOLUTION,
    channel_dimension,
    input_dimension,
    weight_positions,
)
from selector.oracle.fx_steps import StepRunner, apply_layer, source_of
from selector.oracle.masked_engine import Removal

WORTH_GATHERING = 0.2
"""Share of a layer's inputs from which copying the others together costs less than reading all."""


class Recomputation:
    """What must be computed again when channels of one group go."""

    def __init__(self, runner: StepRunner, group: Group) -> None:
        self._runner = runner
        self._parts = {part.layer: part for part in group.slices if part.side == "in"}
        self._nodes = runner.steps.dependents(tuple(self._parts))
        self._changed = set(self._nodes)
        self._width = group.channels

    def run(
        self, values: Mapping[fx.Node, object], removals: Sequence[Removal], images: int
    ) -> object:
        """The network's outputs, the removals one after the other along the batch dimension."""
        known = Overlay(values, len(removals), images)
        output: object = None
        node: fx.Node
        for node in self._nodes:
            if node.op == "call_module" and node.target in self._parts:
                known.changed[node] = output = self._consumer(node, known, removals)
            else:
                known.changed[node] = output = self._runner.value(node, known)
        return output

    def _consumer(self, node: fx.Node, known: "Overlay", removals: Sequence[Removal]) -> Tensor:
        source = source_of(node)
        if any(fold.layer == node.target for removal in removals for fold in removal.folds):
            outputs = [self._with_fold(node, known, r, k) for k, r in enumerate(removals)]
            output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        elif source not in self._changed:
            inputs, whole = known.base[source], known.base[node]
            assert isinstance(inputs, Tensor)
            assert isinstance(whole, Tensor)
            outputs = [self._alone(node, inputs, r.channels, whole) for r in removals]
            output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        elif len(removals) == 1:
            output = self._alone(node, known.tensor(source), removals[0].channels, None)
        else:
            output = self._together(node, known.tensor(source), removals)
        shift = self._shift(node, removals, output)
        return output if shift is None else output + shift

    def _with_fold(self, node: fx.Node, known: "Overlay", removal: Removal, place: int) -> Tensor:
        """A consumer's outputs with the weight that stands for one candidate.

        Args:
            node: The consumer.
            known: The values.
            removal: The candidate.
            place: Its place among those that run together.
        """
        source, (_, bias) = source_of(node), self._runner.weight(node)
        layer, name = self._runner.layer(node), str(node.target)
        if source in self._changed:
            inputs = known.tensor(source)
            inputs = inputs.chunk(known.times)[place] if known.times > 1 else inputs
        else:
            inputs = cast(Tensor, known.base[source])
        weight = next(fold.weight for fold in removal.folds if fold.layer == name)
        scale = self._runner.scale(name)
        if scale is not None:
            weight = weight * scale.to(weight).view(-1, *[1] * (weight.ndim - 1))
        weight = weight.to(inputs.dtype)
        gone = set(self._indices(name, removal.channels))
        width = inputs.shape[channel_dimension(layer, inputs)]
        grouped = isinstance(layer, CONVOLUTION) and layer.groups > 1
        if grouped or len(gone) < WORTH_GATHERING * width:
            return apply_layer(layer, inputs, weight, bias)
        left = [index for index in range(width) if index not in gone]
        return self._of_some(layer, inputs, left, weight, bias)

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
        layer, (weight, bias) = self._runner.layer(node), self._runner.weight(node)
        gone = self._indices(str(node.target), channels)
        dimension = channel_dimension(layer, inputs)
        share = len(gone) / inputs.shape[dimension]
        if isinstance(layer, CONVOLUTION) and layer.groups > 1:
            index = torch.tensor(weight_positions(layer, "in", gone), device=weight.device)
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
        dimension = channel_dimension(layer, inputs)
        read = weight.index_select(input_dimension(layer), index)
        return apply_layer(layer, inputs.index_select(dimension, index), read, bias)

    def _together(self, node: fx.Node, inputs: Tensor, removals: Sequence[Removal]) -> Tensor:
        """A consumer's outputs for several candidates that have changed its inputs."""
        layer, (weight, bias) = self._runner.layer(node), self._runner.weight(node)
        kept = [self._kept(str(node.target), r.channels, inputs) for r in removals]
        masks = torch.stack(kept).repeat_interleave(len(inputs) // len(removals), 0)
        shape = [len(inputs), *[1] * (inputs.ndim - 1)]
        shape[channel_dimension(layer, inputs)] = -1
        return apply_layer(layer, inputs * masks.view(shape), weight, bias)

    def _indices(self, layer: str, channels: Sequence[int]) -> list[int]:
        part, gone = self._parts[layer], set(channels)
        return [i for i, c in zip(part.indices, part.channels, strict=True) if c in gone]

    def _kept(self, layer: str, channels: Sequence[int], inputs: Tensor) -> Tensor:
        module = self._runner.layer(self._runner.steps.layers[layer][0])
        width = inputs.shape[channel_dimension(module, inputs)]
        mask = torch.ones(width, dtype=inputs.dtype, device=inputs.device)
        mask[self._indices(layer, channels)] = 0
        return mask

    def _shift(self, node: fx.Node, removals: Sequence[Removal], output: Tensor) -> Tensor | None:
        name = str(node.target)
        if not any(shift.layer == name for removal in removals for shift in removal.shifts):
            return None
        width = self._runner.weight(node)[0].shape[0]
        rows = []
        for removal in removals:
            row = output.new_zeros(width)
            for shift in removal.shifts:
                if shift.layer == name:
                    row = row + shift.values.to(row)
            scale = self._runner.scale(name)
            rows.append(row if scale is None else row * scale)
        table = torch.stack(rows).repeat_interleave(len(output) // len(removals), 0)
        shape = [len(output), *[1] * (output.ndim - 1)]
        shape[channel_dimension(self._runner.layer(node), output)] = -1
        return table.view(shape)


class Overlay(Mapping[fx.Node, object]):
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
