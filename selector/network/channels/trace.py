"""A forward pass in which every tensor carries the labels of its channels."""

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from selector.data.forward import call, float_tensors
from selector.network.attention import opened
from selector.network.bare import sizes_of
from selector.network.channels.ledger import Ledger
from selector.network.channels.planes import Value, lines, stretched, varying
from selector.network.channels.rules import combined
from selector.network.channels.table import POINTWISE, RESHAPING, RULES
from selector.network.coupling.watching import nothing_fused
from selector.network.groups import OUTPUT


@dataclass(eq=False)
class ModuleCall:
    """One call of a module."""

    module: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...] = ()


@dataclass(frozen=True, eq=False)
class Extent:
    """A dimension of a tensor in a module's own code, with the labels at each position."""

    module: str
    labels: Tensor
    """Shape (positions, labels at each)."""


@dataclass(eq=False)
class Traced:
    """What a forward pass shows of the channels."""

    ledger: Ledger
    calls: list[ModuleCall] = field(default_factory=list)
    extents: list[Extent] = field(default_factory=list)
    ran: set[str] = field(default_factory=set)
    """Modules that are called."""


def trace_channels(model: nn.Module, inputs: object) -> Traced:
    """Follow the channels of a network through one forward pass.

    Args:
        model: The network, in evaluation mode.
        inputs: A few images.
    """
    traced = Traced(Ledger(sizes={name: sizes_of(m) for name, m in model.named_modules()}))
    tracer = _Tracer(model, traced)
    torch.clear_autocast_cache()  # Or weights that were cast before would not be seen.
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(nothing_fused(model))
        for name, module in model.named_modules():
            tracer.watch(stack, name, module)
            layer = stack.enter_context(opened(module))
            tracer.note_calls(stack, name, layer)
        with tracer:
            outputs = call(model, inputs)
    for tensor in float_tensors(outputs):
        for plane in tracer.value(tensor).planes:
            traced.ledger.fix(plane, OUTPUT)
    return traced


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives every output of an operator its labels, by the operator's rule."""

    def __init__(self, model: nn.Module, traced: Traced) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.traced, self.ledger = traced, traced.ledger
        self.values: Any = WeakTensorKeyDictionary()
        own = [*model.parameters(), *model.buffers()]
        self.own = {id(tensor) for tensor in own}
        self.whole: Any = WeakTensorKeyDictionary()
        """Slice of a tensor that was made in the forward pass -> that tensor."""
        self.stack: list[int] = []
        self.seen: set[tuple[Any, ...]] = set()
        self.thread = threading.get_ident()

    def value(self, tensor: object) -> Value:
        """What is known of a tensor; of one that was there before, that its widths are fixed."""
        if not isinstance(tensor, Tensor):
            return Value(adapts=True)
        if tensor in self.values:
            found: Value = self.values[tensor]
            return found
        if id(tensor) in self.own and tensor.is_floating_point():
            return self.ledger.parameter(tensor)
        return Value(adapts=tensor.numel() == 1)

    def watch(self, stack: ExitStack, name: str, module: nn.Module) -> None:
        """Note the calls of a module, with what goes in and comes out."""

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            if threading.get_ident() == self.thread:
                self.traced.calls.append(ModuleCall(name, self._values((args, kwargs))))
                self.stack.append(len(self.traced.calls) - 1)
                self._note_stack()

        def after(_: nn.Module, __: Any, output: Any) -> None:
            if threading.get_ident() == self.thread:
                self.traced.calls[self.stack.pop()].outputs = self._values(output)
                self._note_stack()

        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(after).remove)

    def note_calls(self, stack: ExitStack, name: str, layer: nn.Module) -> None:
        """Note whether a layer is called: attention's packed weight is one of its own."""

        def before(*_: object) -> None:
            if threading.get_ident() == self.thread:
                self.traced.ran.add(name)

        stack.callback(layer.register_forward_pre_hook(before).remove)

    def _note_stack(self) -> None:
        self.ledger.calls = tuple(self.stack)
        self.ledger.module = self.traced.calls[self.stack[-1]].module if self.stack else ""

    def _values(self, structure: object) -> tuple[Value, ...]:
        leaves = pytree.tree_leaves(structure)
        return tuple(self.value(leaf) for leaf in leaves if isinstance(leaf, Tensor))

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        out = func(*args, **given)
        if threading.get_ident() != self.thread:
            return out
        name = func._overloadpacket.__name__
        tensors = [leaf for leaf in pytree.tree_leaves((args, given)) if isinstance(leaf, Tensor)]
        if any(self.value(tensor).planes for tensor in tensors):
            self._label(func, name, args, given, out, tensors)
        else:
            self._unlabelled(name, out, tensors)
            if name == "slice" and isinstance(out, Tensor):
                self.whole[out] = tensors[0]
        return out

    def _unlabelled(self, name: str, out: object, tensors: Sequence[Tensor]) -> None:
        values = [self.value(tensor) for tensor in tensors]
        # What is stretched is stretched to the shape of something else.
        value = Value(adapts=name == "expand" or all(value.adapts for value in values))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.values[leaf] = value

    def _label(
        self, func: Any, name: str, args: Any, kwargs: Any, out: Any, tensors: Sequence[Tensor]
    ) -> None:
        base = name.removesuffix("_") if func._schema.is_mutable else name
        found: Any
        try:
            found = self._found(func, base, args, kwargs, out, tensors)
        except (RuntimeError, IndexError, ValueError, TypeError):  # No case that the rule knows.
            found = self._lost(name, tensors)
        several = isinstance(out, list | tuple)
        results = found if isinstance(found, list) else [found]
        for leaf, value in zip(out if several else [out], results, strict=False):
            if isinstance(leaf, Tensor):
                self.values[leaf] = value
        if name == "copy_" and args[0] in self.whole:
            self._fill(args[0], self.whole[args[0]])
        if name in RESHAPING:
            made = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
            self._note_extents([args[0], *made])
            for plane in [plane for tensor in made for plane in self.value(tensor).planes]:
                self.ledger.shape(plane)

    def _found(
        self, func: Any, base: str, args: Any, kwargs: Any, out: Any, tensors: Sequence[Tensor]
    ) -> Any:
        if (rule := RULES.get(base)) is not None:
            return rule(self.ledger, func, args, kwargs, out, self.value)
        if base.startswith("new_"):
            return Value(adapts=True)
        if torch.Tag.pointwise in func.tags or base in POINTWISE:
            terms = [(self.value(t), t.shape) for t in tensors]
            return combined(self.ledger, terms, pytree.tree_leaves(out)[0].shape)
        return self._lost(base, tensors)

    def _fill(self, part: Tensor, whole: Tensor) -> None:
        """A slice was written: where it has all channels, so has the tensor that it belongs to."""
        planes = []
        for plane in self.values[part].planes:
            if any(part.shape[d] != whole.shape[d] for d in varying(plane)):
                self.ledger.fix(plane, "its channels are written into a part of a tensor")
                continue
            planes.append(stretched(plane, whole.shape))
        before = [(self.value(whole), whole.shape), (Value(tuple(planes)), whole.shape)]
        self.values[whole] = combined(self.ledger, before, whole.shape)
        if whole in self.whole:
            self._fill(whole, self.whole[whole])

    def _lost(self, name: str, tensors: Sequence[Tensor]) -> Value:
        for tensor in tensors:
            for plane in self.value(tensor).planes:
                self.ledger.fix(plane, f"its channels pass the operator {name.strip('_')!r}")
        return Value()

    def _note_extents(self, tensors: Sequence[object]) -> None:
        module = self.ledger.module
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            for plane in self.value(tensor).planes:
                dims = varying(plane)
                for d in dims:
                    labels = lines(plane, d)
                    key = module, tuple(labels.shape), int(labels[0, 0]), int(labels[-1, -1])
                    if key not in self.seen:
                        self.seen.add(key)
                        self.traced.extents.append(Extent(module, labels))
