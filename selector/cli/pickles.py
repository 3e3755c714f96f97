"""Tensors out of any pickle of PyTorch, without running any of its code.

Checkpoints hold more than tensors: command-line arguments, numbers of NumPy, objects of Lightning,
whole networks. Whatever is not one of a few functions that rebuild tensors is read as an inert
stand-in that remembers its attributes, so that no code of the file's choice is ever run.
"""

import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any, ClassVar

import torch
from torch import Tensor, nn

REBUILDING = {
    ("__builtin__", "set"): set,  # As pickles of protocol 2 call it.
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): nn.Parameter,
    ("torch.nn.parameter", "Buffer"): nn.Buffer if hasattr(nn, "Buffer") else nn.Parameter,
}
"""All that is called while a file is read; none of it does more than make a value."""


class StandIn:
    """What is read in the place of an object of a class that is not looked up."""

    def __init__(self, *args: object, **named: object) -> None:
        """Take anything, and keep nothing."""

    def __call__(self, *args: object, **named: object) -> "StandIn":
        """Be whatever a function of that name would have returned."""
        return StandIn()

    def __setstate__(self, state: object) -> None:
        """Remember attributes."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                self.__dict__.update({str(name): value for name, value in part.items()})

    def __setitem__(self, name: object, value: object) -> None:
        """Take items as a dictionary would."""
        self.__dict__[str(name)] = value

    def append(self, value: object) -> None:
        """Take items as a list would."""

    def extend(self, values: object) -> None:
        """Take items as a list would."""

    def add(self, value: object) -> None:
        """Take items as a set would."""


class _Unpickler(pickle._Unpickler):
    """Python's own reader, not the one in C: that one fills its memory up to any number it reads.

    What reserves memory before there is anything to put into it is not read at all; no file of
    `torch.save` has it.
    """

    dispatch: ClassVar = {
        code: read
        for code, read in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in REBUILDING:
            return REBUILDING[module, name]
        known = getattr(torch, name, None) if module == "torch" else None
        # Storages of old files, and types of numbers.
        if isinstance(known, torch.dtype) or (name.endswith("Storage") and known is not None):
            return known
        return type(name, (StandIn,), {})


class _Pickle(ModuleType):
    """What `torch.load` takes for the module `pickle`."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: IO[bytes], **how: Any) -> Any:
        """Read one object."""
        return _Unpickler(file, **how).load()


def read_inert(path: Path) -> object:
    """What a file of `torch.save` holds, with stand-ins for all but tensors and plain values.

    Raises:
        Exception: Whatever a damaged file leads to.
    """
    found = torch.load(
        path, map_location="cpu", weights_only=False, pickle_module=_Pickle("inert_pickle")
    )
    return _opened(found)


def _opened(value: object) -> object:
    """Stand-ins as mappings: a network as its tensors by name, anything else as its attributes."""
    if isinstance(value, StandIn):
        if isinstance(value.__dict__.get("_modules"), Mapping):
            return dict(_tensors_of(value, ""))
        return {name: _opened(one) for name, one in value.__dict__.items()}
    if isinstance(value, Mapping):
        return {name: _opened(one) for name, one in value.items()}
    return value


def _tensors_of(module: object, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a pickled network, by the names that `state_dict` would give them."""
    parts = getattr(module, "__dict__", {})
    gone = parts.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, tensor in (parts.get(kind) or {}).items():
            if isinstance(tensor, Tensor) and name not in gone:
                yield f"{prefix}{name}", tensor.detach()
    for name, inner in (parts.get("_modules") or {}).items():
        yield from _tensors_of(inner, f"{prefix}{name}.")
