"""What a forward pass does, seen operator by operator."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class OperatorWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context that notes what the operators of one thread do.

    Unlike PyTorch's own `FlopCounterMode`, it adds no hooks to modules, so that other networks may
    run in other threads.
    """

    def __init__(self, *, count: bool = False) -> None:
        """OperatorWatch from now on.

        Args:
            count: Count multiply-accumulates, too; operators that PyTorch fuses are then taken
                apart where their parts can be counted.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0.0
        """Multiply-accumulates of matrix products and convolutions."""
        self.read: set[int] = set()
        """Identities of the tensors that were read."""
        self.coarsest = 0.0
        """The largest rounding error (`torch.finfo.eps`) of the types computed in."""
        self._formulas: Mapping[Any, Callable[..., Any]] = _formulas() if count else {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        packet = func._overloadpacket
        if self._formulas and packet not in self._formulas:
            with self:
                parts = func.decompose(*args, **given)
            if parts is not NotImplemented:
                return parts
        found = func(*args, **given)
        for leaf in pytree.tree_leaves((args, given)):
            if isinstance(leaf, Tensor):
                self.read.add(id(leaf))
        for leaf in pytree.tree_leaves(found):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.coarsest = max(self.coarsest, torch.finfo(leaf.dtype).eps)
        if packet in self._formulas:
            self.macs += self._formulas[packet](*args, **given, out_val=found) / 2
        return found


def _formulas() -> Mapping[Any, Callable[..., Any]]:
    """Operator -> floating-point operations of a call, as PyTorch counts them."""
    from torch.utils.flop_counter import flop_registry, sdpa_flop_count

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> int:
        return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]

    found = dict(flop_registry)
    on_cpu = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if on_cpu is not None:
        found.setdefault(on_cpu, attention)
    return found


_fusing = threading.Lock()


@contextmanager
def nothing_fused(model: nn.Module) -> Iterator[None]:
    """Context in which attention and recurrent layers run operator by operator.

    PyTorch has kernels for whole layers (the fast path of attention, LSTM by cuDNN and oneDNN),
    inside which nothing can be counted.
    """
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with _fusing:
        fast, cudnn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_cudnn_enabled()
        onednn = torch._C._get_mkldnn_enabled()
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            if recurrent:
                torch._C._set_cudnn_enabled(False)
                torch._C._set_mkldnn_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            torch._C._set_cudnn_enabled(cudnn)
            torch._C._set_mkldnn_enabled(onednn)
