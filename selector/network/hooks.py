"""Hooks on named layers that are removed again, and checkpointing that is switched off."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import nn
from torch.utils import checkpoint

from selector.network.attention import opened

Hook = Callable[..., object]
"""A PyTorch hook: `hook(layer, args, output)` after a call, `hook(layer, args)` before it."""


@contextmanager
def forward_hooks(model: nn.Module, hooks: Mapping[str, Hook], pre: bool = False) -> Iterator[None]:
    """Context in which named layers of a network have forward hooks.

    A layer that is called by keyword, as in `layer(input=x)`, is seen as if it were called by
    position: the first argument is always `args[0]`. An attention module stands for the layer that
    makes its queries, keys and values, and what is inside of it is called where it is hooked.

    Args:
        model: The network.
        hooks: Qualified name of a layer -> its hook, called as PyTorch calls it. What a hook
            returns, unless it is None, replaces the layer's output, or its positional arguments
            where hooks run before the layer.
        pre: Whether the hooks run before the layer.
    """
    with ExitStack() as stack:
        for name, hook in hooks.items():
            parent, _, _ = name.rpartition(".")
            if parent:
                stack.enter_context(opened(model.get_submodule(parent)))
            layer = stack.enter_context(opened(model.get_submodule(name)))
            handle = (
                layer.register_forward_pre_hook(_before(hook), with_kwargs=True)
                if pre
                else layer.register_forward_hook(_after(hook), with_kwargs=True)
            )
            stack.callback(handle.remove)
        yield


def _before(hook: Hook) -> Callable[..., object]:
    def before(
        layer: nn.Module, args: tuple[object, ...], named: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        args, named = _by_position(args, named)
        changed = hook(layer, args)
        if changed is None:
            return None
        return changed if isinstance(changed, tuple) else (changed,), named

    return before


def _after(hook: Hook) -> Callable[..., object]:
    def after(
        layer: nn.Module, args: tuple[object, ...], named: dict[str, object], output: object
    ) -> object:
        args, _ = _by_position(args, named)
        return hook(layer, args, output)

    return after


def _by_position(
    args: tuple[object, ...], named: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    if args or not named:
        return args, named
    first = "input" if "input" in named else next(iter(named))
    return (named[first],), {name: value for name, value in named.items() if name != first}


_LOCK = threading.Lock()
_PLAIN: dict[int, int] = {}
"""Thread -> how many contexts of `without_checkpoints` it is in."""


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Context in which reentrant gradient checkpointing runs its function plainly.

    Reentrant checkpointing hides its part of the graph, so the layers in it cannot be traced. Other
    threads are not affected.
    """
    function, thread = checkpoint.CheckpointFunction, threading.get_ident()

    def apply(cls: type, run: Callable[..., object], preserve: bool, *args: object) -> object:
        if threading.get_ident() in _PLAIN:
            return run(*args)
        found: object = super(function, cls).apply(run, preserve, *args)  # type: ignore[misc]
        return found

    with _LOCK:
        if not _PLAIN:
            function.apply = classmethod(apply)
        _PLAIN[thread] = _PLAIN.get(thread, 0) + 1
    try:
        yield
    finally:
        with _LOCK:
            _PLAIN[thread] -= 1
            if not _PLAIN[thread]:
                del _PLAIN[thread]
            if not _PLAIN:
                del function.apply
