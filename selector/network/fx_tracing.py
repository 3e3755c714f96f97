"""Tracing with torch.fx while other threads run other networks."""

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

_tracing = threading.RLock()
"""torch.fx replaces how all modules are called while it traces: one network at a time."""


class ThreadedTracer(fx.Tracer):
    """Lets the networks that other threads run meanwhile through."""

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace a network, as soon as no other one is traced."""
        with _tracing:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """A call of a module; one of another thread is no part of the trace."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """An attribute of a module; the same holds."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
