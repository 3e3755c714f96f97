"""Arguments of the wrong kind are refused by name, with what to pass instead."""

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from selector.errors import SelectorError


def check_model(model: object, name: str = "model") -> None:
    """Make sure that a network is a `torch.nn.Module` with values, and with Python's layers.

    Raises:
        SelectorError: It is a path, a class, a function, a state dict, a result, or anything else;
            TorchScript, or without values (device meta).
    """
    if isinstance(model, nn.Module):
        for title, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                part = f"layer {title!r}" if title else name
                raise SelectorError(
                    f"{part} is TorchScript, which can be neither hooked nor cut; use the module "
                    "that it was compiled from"
                )
        for title, tensor in (*model.named_parameters(), *model.named_buffers()):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                raise SelectorError(
                    f"{title!r} has no values (device 'meta'); load the weights onto a device first"
                )
        return
    wanted = f"{name} must be a torch.nn.Module, not"
    if isinstance(model, str | Path):
        raise SelectorError(
            f"{wanted} the path {str(model)!r}; build the network and load its weights into it"
        )
    if isinstance(model, type):
        raise SelectorError(f"{wanted} the class {model.__name__}; pass {model.__name__}(...)")
    if isinstance(model, Mapping):
        raise SelectorError(
            f"{wanted} a mapping of tensors; build the network, call its load_state_dict with "
            "them, and pass the network"
        )
    if isinstance(getattr(model, "model", None), nn.Module):
        raise SelectorError(f"{wanted} a {type(model).__name__}; pass its .model")
    if callable(model):
        title = getattr(model, "__name__", type(model).__name__)
        raise SelectorError(f"{wanted} the function {title}; pass what it returns: {title}()")
    raise SelectorError(f"{wanted} {_kind(model)}")


def check_container(batches: object) -> None:
    """Refuse what can be iterated over and still holds no batches.

    Raises:
        SelectorError: A path, a tensor, a mapping, or a data set of single images.
    """
    way_out = "pass a DataLoader or a list of (inputs, targets)"
    if isinstance(batches, str | bytes | Path):
        raise SelectorError(
            f"batches must be a re-iterable of (inputs, targets), not the path {str(batches)!r}, "
            "and a batch must be a pair; selector.read_images reads labelled images, and "
            "selector.data.image_data.TensorBatches makes batches of them"
        )
    if isinstance(batches, Tensor | Mapping):
        raise SelectorError(
            f"batches must be a re-iterable of (inputs, targets), not one {type(batches).__name__};"
            f" {way_out}: [(inputs, targets)]"
        )
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise SelectorError(
            f"batches must be batches, and a {type(batches).__name__} holds single images; pass "
            "torch.utils.data.DataLoader(dataset, batch_size=64)"
        )


def check_loss(loss: object) -> None:
    """Make sure that a loss is a function of (outputs, targets), or None.

    Raises:
        SelectorError: It is a name, a class, or nothing that can be called.
    """
    if isinstance(loss, type):
        raise SelectorError(
            f"loss must be a function of (outputs, targets), not the class {loss.__name__}; pass "
            f"{loss.__name__}()"
        )
    if loss is not None and not callable(loss):
        raise SelectorError(
            f"loss={loss!r} must be a function of (outputs, targets) that returns the mean loss of "
            "a batch, such as torch.nn.MSELoss(); leave it out for cross-entropy"
        )


def check_function(name: str, value: object, form: str) -> None:
    """Make sure that an argument is a function, or None.

    Args:
        name: Of the argument.
        value: What was given.
        form: How it will be called, for the message.

    Raises:
        SelectorError: It cannot be called.
    """
    if value is not None and (not callable(value) or isinstance(value, type)):
        raise SelectorError(f"{name} must be a function, called as {form}, not {_kind(value)}")


def check_criterion(criterion: object) -> None:
    """Make sure that a criterion is a name.

    Raises:
        SelectorError: It is anything else.
    """
    if not isinstance(criterion, str):
        raise SelectorError(
            "criterion must be a name ('selector', 'oracle', a metric or a proposal), not "
            f"{_kind(criterion)}; for a metric of your own see selector.register_metric, for a "
            "loss pass loss=..."
        )


def check_kind(name: str, value: object, kind: type, way_out: str) -> None:
    """Make sure that an argument is of a class of ours.

    Args:
        name: Of the argument.
        value: What was given.
        kind: The class.
        way_out: What to do instead, for the message.

    Raises:
        SelectorError: It is of another kind.
    """
    if not isinstance(value, kind):
        raise SelectorError(f"{name} must be {_a(kind.__name__)}, not {_kind(value)}; {way_out}")


def check_mapping(name: str, value: object) -> None:
    """Make sure that an argument is a mapping of names, or None.

    Raises:
        SelectorError: It is of another kind.
    """
    if value is not None and not isinstance(value, Mapping):
        raise SelectorError(
            f"{name} must be a mapping from names to shares, as in {{'conv1': 0.3}}, not "
            f"{_kind(value)}"
        )


def check_path(name: str, value: object) -> None:
    """Make sure that an argument is a path, or None.

    Raises:
        SelectorError: It is neither a string nor a path.
    """
    if value is not None and not isinstance(value, str | Path):
        raise SelectorError(f"{name} must be the path of a folder, not {_kind(value)}")


def check_names(name: str, value: object) -> tuple[str, ...]:
    """Names in a list, as a tuple.

    Raises:
        SelectorError: One name without a list, or anything else that is not a list of names.
    """
    if isinstance(value, str):
        raise SelectorError(f"{name}={value!r} must be names in a list: {name}=[{value!r}]")
    found = tuple(value) if isinstance(value, Iterable) else None
    if found is None or not all(isinstance(one, str) for one in found):
        raise SelectorError(f"{name} must be names in a list, as in ['conv1'], not {value!r:.80}")
    return found


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number; NumPy's are, booleans are not."""
    # NumPy's booleans are no numbers to `numbers` either.
    return not isinstance(value, bool) and isinstance(value, Real)


def whole_number(name: str, value: object, least: int) -> int:
    """A whole number as an int; NumPy's are whole numbers, booleans are not.

    Raises:
        SelectorError: It is not a whole number, or below the least.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise SelectorError(f"{name}={value!r} must be a whole number, {least} or more")
    return int(value)


def share(name: str, value: object, what: str = "a share") -> float:
    """A share between 0 and 1, both excluded, as a float.

    Args:
        name: Of the argument.
        value: What was given; NumPy's numbers are numbers, booleans are not.
        what: What it is a share of, for the message.

    Raises:
        SelectorError: It is not a number between 0 and 1.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < 1:
        raise SelectorError(f"{name}={value!r} must be {what} between 0 and 1")
    return float(value)


def _kind(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, str | int | float):
        return f"{value!r}"
    return _a(type(value).__name__)


def _a(noun: str) -> str:
    return f"{'an' if noun[0].upper() in 'AEIOU' else 'a'} {noun}"
