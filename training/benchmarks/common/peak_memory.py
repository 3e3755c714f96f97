"""Peak memory of one call, beyond what its process held before; a fresh process for each.

So nothing uses what another has left in the allocator. On a processor, Linux alone tells a peak
that can be set back.
"""

import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from selector.errors import SelectorError

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
P = ParamSpec("P")
T = TypeVar("T")


def in_own_process(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the call returns in a process that has done nothing before.

    Args:
        call: A function of a module; it, its arguments and what it returns are sent as pickles.
        *args: Its arguments.
        **kwargs: Its arguments by name.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(call, *args, **kwargs).result()


def peak_mib(call: Callable[[], object]) -> float:
    """The most that the call held at once, in MiB beyond what there was; of the GPU if any.

    Raises:
        SelectorError: Neither a GPU nor Linux.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    check_measurable()
    RESET.write_text("5")  # The peak is the present from here on.
    resident = _mib("VmRSS")
    call()
    return _mib("VmHWM") - resident


def check_measurable() -> None:
    """Refuse a system that tells no peak.

    Raises:
        SelectorError: Neither a GPU nor Linux.
    """
    if not torch.cuda.is_available() and not RESET.exists():
        raise SelectorError(f"there is no {RESET}: peak memory is measured on Linux alone")


def _mib(field: str) -> float:
    line = next(row for row in STATUS.read_text().splitlines() if row.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024
