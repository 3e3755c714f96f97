"""Batches on the model's device, and forward passes in evaluation mode."""

import dataclasses
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.batches import Batches, batch_size, first_batch, rows
from selector.data.checks import check_model
from selector.data.own_forward import own_forward, run_by
from selector.errors import SelectorError


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter, else the CPU."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def read(model: nn.Module, batches: Batches) -> Iterator[tuple[object, object]]:
    """Batches, one by one, on the model's device."""
    device = device_of(model)
    for inputs, targets in batches:
        yield arguments(model, to_device(inputs, device)), to_device(targets, device)


def to_device(values: object, device: torch.device) -> object:
    """The same structure with every tensor on the device."""

    def move(leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        moved = leaf.to(device, non_blocking=True)
        # No gradient can flow past a tensor of inference_mode, but past its copy outside of it.
        copied = moved.is_inference() and not torch.is_inference_mode_enabled()
        return moved.clone() if copied else moved

    moved: object = pytree.tree_map(move, values)
    return moved


def arguments(model: nn.Module, inputs: object) -> object:
    """The inputs as `call` takes them; a list that can only be one argument, as a tuple of it.

    A DataLoader gives several arguments as a list, and detectors take one list of images.
    """
    if not isinstance(inputs, list):
        return inputs
    try:
        inspect.signature(model.forward).bind(*inputs)
    except TypeError:
        return (inputs,)
    except ValueError:  # No signature.
        return inputs
    return inputs


def call(model: nn.Module, inputs: object) -> object:
    """Run the model: a tensor as the one argument, a sequence as several, a mapping by name.

    Where a caller has given a `forward` of its own, that runs it.

    Parts that `torch.compile` has wrapped run as they were written, so that hooks in them are seen.
    """
    forward = own_forward(model)
    with _as_written(model):
        if forward is not None:
            return run_by(model, forward, inputs)
        if isinstance(inputs, Mapping):
            return model(**inputs)
        if isinstance(inputs, tuple | list):
            return model(*inputs)
        return model(inputs)


def _as_written(model: nn.Module) -> AbstractContextManager[object]:
    """Context in which compiled parts of a network run uncompiled."""
    if "torch._dynamo" in sys.modules and any(map(_is_compiled, model.modules())):
        eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return eager
    return nullcontext()


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def run_batch(model: nn.Module, inputs: object, batch: int) -> object:
    """`call`, with an error of the network reported as one that names the batch.

    Raises:
        SelectorError: The network raised an error; the batch is named.
    """
    try:
        return call(model, inputs)
    except SelectorError:
        raise
    except Exception as error:
        which = "the first batch" if batch == 0 else f"batch {batch}"
        raise SelectorError(
            f"the network does not run on {which} ({type(error).__name__}: {error}); "
            "check that the inputs have the shape and type it expects"
        ) from error


def probe_inputs(model: nn.Module, batches: Batches, count: int = 4) -> object:
    """A few images of the first batch, on the model's device.

    The whole first batch where the network does not run on fewer images, or gives outputs for
    another number of them: a fixed batch size, or a table that is as long as the batch by chance.
    """
    check_model(model)
    inputs, targets = first_batch(batches)
    images = batch_size(inputs, targets)
    inputs = arguments(model, to_device(inputs, device_of(model)))
    if images <= count:
        return inputs
    few = rows(inputs, 0, count, images)
    return few if runs_on(model, few, count) else inputs


@torch.no_grad()
def runs_on(model: nn.Module, inputs: object, images: int) -> bool:
    """Whether the network gives outputs for as many images as the inputs hold."""
    try:
        with evaluating(model):
            outputs = call(model, inputs)
    except Exception:
        return False  # Whatever it is: where the whole batch fails too, that error is reported.
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return any(images in leaf.shape for leaf in leaves)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which every module is in evaluation mode; each one's own flag comes back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def float_tensors(outputs: object) -> list[Tensor]:
    """Floating-point and complex tensors of a structure, in order.

    Containers of any kind are opened: mappings, sequences, dataclasses, and plain objects by their
    attributes.
    """
    found: list[Tensor] = []
    _collect_tensors(outputs, found, set())
    return found


def _collect_tensors(value: object, found: list[Tensor], seen: set[int]) -> None:
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            found.append(value)
        return
    if value is None or isinstance(value, str | bytes | int | float | complex | nn.Module | type):
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    for part in _parts_of(value):
        _collect_tensors(part, found, seen)


def _parts_of(value: object) -> list[object]:
    """What a container or an object holds."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    leaves = pytree.tree_leaves(value)
    if not (len(leaves) == 1 and leaves[0] is value):
        return list(leaves)
    return list(getattr(value, "__dict__", {}).values())
