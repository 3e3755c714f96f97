"""A caller's own way of running a network on a batch: `forward(model, batch)`.

For networks that are called with more than inputs, and for losses that exist in training mode only,
as those of torchvision's detectors. While a public function works, the network and all copies of it
are run by it.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from selector.data.checks import check_function
from selector.errors import SelectorError

Forward = Callable[[nn.Module, Any], object]
"""`forward(model, batch) -> outputs, or the mean loss of the batch`."""

_NUMBER = "_selector_forward"
_known: dict[int, Forward] = {}
_numbers = itertools.count()
_FROZEN = nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd


@contextmanager
def running_by(model: object, forward: Forward | None) -> Iterator[None]:
    """Context in which a network, and copies that are made of it, are run by `forward`.

    Args:
        model: The network.
        forward: None to run it as usual.
    """
    if forward is None or not isinstance(model, nn.Module):
        yield
        return
    check_function("forward", forward, "forward(model, batch)")
    number = next(_numbers)
    _known[number] = forward
    # A number, so that copies of the network copy nothing of the caller's.
    vars(model)[_NUMBER] = number
    try:
        yield
    finally:
        forget(model)
        del _known[number]


def forget(model: nn.Module) -> None:
    """Run a network as usual again."""
    vars(model).pop(_NUMBER, None)


def own_forward(model: nn.Module) -> Forward | None:
    """What a network is run by, if it is not called."""
    return _known.get(vars(model).get(_NUMBER, -1))


class ForwardBatches:
    """A caller's batches as pairs of what `forward` gets, by name, and targets.

    Args:
        batches: Re-iterable of whatever `forward` reads.
    """

    def __init__(self, batches: Iterable[object]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[object, object]]:
        """Read them once."""
        for batch in self.batches:
            if isinstance(batch, tuple | list) and len(batch) == 2:
                yield {"inputs": batch[0], "targets": batch[1]}, batch[1]
            else:
                yield {"batch": batch}, None


def run_by(model: nn.Module, forward: Forward, inputs: object) -> object:
    """Run a network by `forward`.

    It may switch to training mode: the modes come back, BatchNorm keeps its statistics, dropout
    drops nothing, and random numbers are the same in every call, so that two calls can be compared.

    Args:
        model: The network.
        forward: The caller's function.
        inputs: Of `ForwardBatches`.
    """
    assert isinstance(inputs, Mapping)
    batch = inputs["batch"] if "batch" in inputs else (inputs["inputs"], inputs["targets"])
    modules = list(model.modules())
    modes = [module.training for module in modules]
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        torch.manual_seed(0)
        for module in modules:
            if isinstance(module, _FROZEN):
                vars(module)["train"] = _stays(module)
                stack.callback(vars(module).pop, "train")
        try:
            return forward(model, batch)
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode


def _stays(module: nn.Module) -> Callable[..., nn.Module]:
    def train(mode: bool = True) -> nn.Module:
        return module

    return train


def returned_loss(outputs: object, targets: object) -> Tensor:
    """The loss of a batch where `forward` gives it: a number, or several by name to be added.

    Raises:
        SelectorError: It gave something else.
    """
    parts = list(outputs.values()) if isinstance(outputs, Mapping) else [outputs]
    numbers = [p.reshape(()) for p in parts if isinstance(p, Tensor) and p.numel() == 1]
    if numbers and len(numbers) == len(parts):
        return torch.stack(numbers).sum()
    raise SelectorError(
        f"forward(model, batch) returned a {type(outputs).__name__} that is no loss; return the "
        "mean loss of the batch, or pass loss=, which gets what forward returns and the second "
        "part of the batch"
    )
