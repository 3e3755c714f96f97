"""One thread at a time works on a network: masks, hooks and modes of two would mix."""

import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import nn

from selector.data.own_forward import ForwardBatches, forget, returned_loss, running_by
from selector.data.plain_weights import normalise_again, plain_weights

P = ParamSpec("P")
T = TypeVar("T")

_GUARD = threading.Lock()
_LOCKS: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()


def one_at_a_time(function: Callable[P, T]) -> Callable[P, T]:
    """Let a public function that works on a network wait until no other one works on it.

    The network is the function's first argument; all networks that it is given have plain weights
    meanwhile (see `plain_weights`), and what it returns has their norms again. Where the function
    has an argument `forward`, the network is run by it (see `running_by`). Within a thread,
    functions may call each other.
    Gradients are possible inside, also where the caller is in `torch.inference_mode`. That the
    caller's own threads do not run the network meanwhile is up to the caller.
    """
    signature = inspect.signature(function)
    name = next(iter(signature.parameters))

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        model = args[0] if args else kwargs.get(name)
        forward = kwargs.get("forward")
        if forward is not None:
            bound = signature.bind(*args, **kwargs)
            bound.arguments |= _for_own_forward(bound.arguments)
            args, kwargs = bound.args, bound.kwargs  # type: ignore[assignment]
        given = [one for one in (*args, *kwargs.values()) if _networks_of(one)]
        outermost = not getattr(_working, "now", False)
        with lock_of(model), torch.inference_mode(False), ExitStack() as stack:
            if not outermost:
                return function(*args, **kwargs)
            _working.now = True
            stack.callback(setattr, _working, "now", False)
            for one in given:
                for network in _networks_of(one):
                    stack.enter_context(plain_weights(network))
                    stack.enter_context(running_by(network, cast(Any, forward)))
            try:
                found = function(*args, **kwargs)
            except Exception as error:
                # What was reached before an error.
                _finish(getattr(error, "result", None), given)
                raise
            _finish(found, given)
            return found

    return alone


_working = threading.local()


def _for_own_forward(arguments: Mapping[str, object]) -> dict[str, object]:
    """Those arguments that are others where a network is run by the caller's `forward`."""
    found: dict[str, object] = {
        name: ForwardBatches(cast(Any, arguments[name]))
        for name in ("batches", "test_batches", "calibration", "images")
        if arguments.get(name) is not None
    }
    if "inputs" in arguments:  # One batch.
        found["inputs"] = next(iter(ForwardBatches([arguments["inputs"]])))[0]
    return found if arguments.get("loss") else found | {"loss": returned_loss}


def _networks_of(value: object) -> list[nn.Module]:
    """The networks of an argument or a result: itself, or those that it holds."""
    if isinstance(value, nn.Module):
        return [value]
    held = (getattr(value, name, None) for name in ("model", "unpruned"))
    return [one for one in held if isinstance(one, nn.Module)]


def _finish(found: object, given: Sequence[object]) -> None:
    """Give new networks in a result their norms; those that were given get their own back."""
    known = [network for one in given for network in _networks_of(one)]
    for network in _networks_of(found):
        if not any(network is one for one in known):
            normalise_again(network)
            forget(network)


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
