"""Whether two versions of a network give the same outputs, as exactly as can be told.

Outputs are compared in float64 where the network runs in it: what is then left of a difference is
no rounding, however little the group in question does to the outputs. Networks that fix a type in
their forward pass are compared in their own precision.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.forward import call, device_of, evaluating, float_tensors
from selector.network.coupling.watching import OperatorWatch

SHARE = 1e-4
"""Largest difference relative to what a removal changes in the outputs."""

LARGEST_DOUBLE = 2**28
"""Networks with more parameters are compared in their own precision: float64 needs 8 bytes each."""


@dataclass(frozen=True, eq=False)
class LawCheck:
    """Compares outputs on one batch with those of the whole network."""

    model: nn.Module
    inputs: object
    whole: tuple[Tensor, ...]
    """Outputs with nothing removed, in float64."""
    noise: float
    """Differences up to this share of an output's largest value are rounding."""

    def outputs(self) -> tuple[Tensor, ...]:
        """Outputs of the network as it is now, in float64."""
        return exact(call(self.model, self.inputs))

    def difference(
        self, expected: Sequence[Tensor], actual: Sequence[Tensor], share: float = SHARE
    ) -> str | None:
        """How the outputs of a cut differ from those expected, or None where they agree.

        Args:
            expected: Outputs of the masked network.
            actual: Outputs of the cut one.
            share: Allowed share of what the removal changes in each output, beyond rounding.
        """
        return difference(self.whole, expected, actual, noise=self.noise, share=share)


def difference(
    whole: Sequence[Tensor],
    expected: Sequence[Tensor],
    actual: Sequence[Tensor],
    *,
    noise: float,
    share: float = SHARE,
) -> str | None:
    """How some outputs differ from those expected, or None where they agree.

    Args:
        whole: Outputs of the network with nothing removed.
        expected: Outputs that masking promises.
        actual: Outputs of the cut network.
        noise: Differences up to this share of an output's largest value are rounding.
        share: Allowed share of what the removal changes in each output, beyond rounding.
    """
    if [t.shape for t in actual] != [t.shape for t in expected]:
        return "an output of the network would change its shape"
    for before, one, other in zip(whole, expected, actual, strict=True):
        scale = max(largest([before]), largest([one]))
        changed = largest([one - before]) if one.shape == before.shape else scale
        gap = largest([one - other])
        if not gap <= noise * scale + share * changed:
            return f"differ by {gap:.2g} (largest output {scale:.2g}, changed by {changed:.2g})"
    return None


@contextmanager
def judging(model: nn.Module, inputs: object) -> Iterator[LawCheck]:
    """Context with a judge of the network's outputs; in it the network may run in float64.

    The network may be masked and cut inside; on leaving, it has the tensors that it came with.
    """
    with torch.no_grad(), evaluating(model), exact_arithmetic(model):
        with OperatorWatch() as watch:
            native = exact(call(model, inputs))
        with ExitStack() as stack:
            stack.enter_context(_in_double(model))
            wide = _double_outputs(model, inputs, native)
            if wide is not None:
                yield LawCheck(model, _double_inputs(inputs), wide, noise=1e-10)
                return
        yield LawCheck(model, inputs, native, noise=rounding(watch.coarsest))


def rounding(epsilon: float) -> float:
    """Share of an output's largest value that rounding may take, by the type computed in."""
    if epsilon < 1e-10:
        return 1e-10
    return max(1e-5, 16 * epsilon)


def exact(outputs: object) -> tuple[Tensor, ...]:
    """Floating-point and complex outputs as copies in float64."""
    found = []
    for tensor in float_tensors(outputs):
        values = tensor.detach()
        if values.is_complex():
            values = torch.view_as_real(values.resolve_conj())
        found.append(values.to(torch.float64, copy=True))
    return tuple(found)


def largest(tensors: Sequence[Tensor]) -> float:
    """The largest absolute value."""
    return max((float(t.abs().max()) for t in tensors if t.numel()), default=0.0)


def _double_outputs(
    model: nn.Module, inputs: object, native: Sequence[Tensor]
) -> tuple[Tensor, ...] | None:
    """Outputs in float64, or None where the network does not run in it."""
    if sum(p.numel() for p in model.parameters()) > LARGEST_DOUBLE:
        return None
    try:
        given = _double_inputs(inputs)
        with OperatorWatch() as watch:
            wide = exact(call(model, given))
    except Exception:  # A type that is fixed in the forward pass, or a device without float64.
        return None
    same = [t.shape for t in wide] == [t.shape for t in native]
    if not same or watch.coarsest > torch.finfo(torch.float64).eps:
        return None
    near = all(largest([a - b]) <= 0.1 * largest([a]) for a, b in zip(native, wide, strict=True))
    return wide if near else None


_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def _wide(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype in _WIDER:
        return value.detach().to(_WIDER[value.dtype])
    return value


def _double_inputs(inputs: object) -> object:
    wide: object = pytree.tree_map(_wide, inputs)
    return wide


@contextmanager
def _in_double(model: nn.Module) -> Iterator[None]:
    """Context in which parameters and buffers are float64; their own tensors come back.

    Gradients are put aside: a parameter takes none of another type than its own.
    """
    undo: list[tuple[nn.Parameter, Tensor, Tensor | None]] = []
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        if sum(p.numel() for p in model.parameters()) <= LARGEST_DOUBLE:
            for parameter in model.parameters():
                if parameter.dtype in _WIDER:
                    undo.append((parameter, parameter.data, parameter.grad))
                    parameter.grad = None
                    parameter.data = parameter.data.to(_WIDER[parameter.dtype])
            for module, own in buffers:
                for name, buffer in own.items():
                    if isinstance(buffer, Tensor) and buffer.dtype in _WIDER:
                        module._buffers[name] = buffer.to(_WIDER[buffer.dtype])
        torch.clear_autocast_cache()
        yield
    finally:
        for parameter, data, gradient in undo:
            parameter.data = data
            parameter.grad = gradient
        for module, own in buffers:
            module._buffers.clear()
            module._buffers.update(own)
        torch.clear_autocast_cache()


_lock = threading.Lock()
_inside = 0
_found: list[tuple[Any, str, object]] = []


@contextmanager
def exact_arithmetic(model: nn.Module) -> Iterator[None]:
    """Context without TF32 or autocast: a difference on the probe batch is then a real one.

    The settings belong to the process: the last thread to leave puts back what the first one found.
    """
    with torch.autocast(device_of(model).type, enabled=False):
        _enter()
        try:
            yield
        finally:
            _leave()


def _enter() -> None:
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            for place, name, exact in _settings():
                _found.append((place, name, getattr(place, name)))
                setattr(place, name, exact)


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if not _inside:
            while _found:
                setattr(*_found.pop())


def _settings() -> list[tuple[Any, str, object]]:
    """Where PyTorch keeps how exactly it multiplies float32, and the exact value.

    Newer versions have a setting for each kind of operation. They refuse to read the older ones
    once a user has set one of these.
    """
    backends: Any = torch.backends
    if hasattr(backends.cudnn, "conv"):
        kinds = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
        kinds += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
        return [(kind, "fp32_precision", "ieee") for kind in kinds]
    return [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]
