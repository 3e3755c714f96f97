"""One thread at a time works on a network: masks, hooks and modes of two would mix."""

import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
T = TypeVar("T")

_GUARD = threading.Lock()
_LOCKS: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()


def one_at_a_time(function: Callable[P, T]) -> Callable[P, T]:
    """Let a public function that works on a network wait until no other one works on it.

    The network is the function's first argument. Within a thread, functions may call each other.
    Gradients are possible inside, also where the caller is in `torch.inference_mode`. That the
    caller's own threads do not run the network meanwhile is up to the caller.
    """
    name = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        model = args[0] if args else kwargs.get(name)
        with lock_of(model), torch.inference_mode(False):
            return function(*args, **kwargs)

    return alone


def lock_of(model: object) -> "threading.RLock":
    """The lock of a network, the same for the wrapper that `torch.compile` puts around it."""
    if not isinstance(model, nn.Module):
        return threading.RLock()  # Not a network: the function will say so.
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    with _GUARD:
        return _LOCKS.setdefault(model, threading.RLock())


def _forget() -> None:
    """Begin anew in a forked process: threads that held a lock are not there."""
    global _GUARD
    _GUARD = threading.Lock()
    _LOCKS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
