"""How a pruning was made: when, by which call, on what, with which versions."""

import inspect
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.forward import device_of

PACKAGES = ("saliency-selector", "torch", "torch-pruning", "lightgbm", "numpy")
COMMAND = "saliency-selector"
LONGEST = 60
"""Characters of an argument's value that are shown."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """How a pruning was made."""

    finished: str
    """Date and time in UTC, ISO 8601."""
    seconds: float
    """Wall time of `prune`, without what the report itself measures."""
    network: str
    """Class of the network."""
    call: str
    """The call in Python, without options at their default."""
    command: str | None
    """What was typed, where it was `saliency-selector`."""
    inputs: tuple[str, ...]
    """Shapes of a single image, one for each input."""
    images: int | None
    """Calibration images; None where nothing counted them."""
    fine_tuned: bool
    versions: tuple[tuple[str, str], ...]
    """Package and version; Python first."""
    machine: str
    threads: int
    device: str
    seed: int
    """PyTorch's global seed. `prune` draws nothing from it, but a user's code may."""


@dataclass(frozen=True)
class Clocked:
    """A call that was begun."""

    call: str
    begun: float
    fine_tuned: bool

    @classmethod
    def of(cls, function: Callable[..., object], given: Mapping[str, object]) -> "Clocked":
        """Begin now.

        Args:
            function: What was called.
            given: Its arguments by name, those of `**` in a mapping under their own name.
        """
        return cls(
            call_text(function, given), time.perf_counter(), given.get("finetune") is not None
        )

    def info(self, model: nn.Module, inputs: object, images: int | None) -> RunInfo:
        """What is known of the run now that it is over.

        Args:
            model: The unpruned network.
            inputs: A few images, as it is called with.
            images: How many images there were to prune by.
        """
        return RunInfo(
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=time.perf_counter() - self.begun,
            network=type(model).__qualname__,
            call=self.call,
            command=typed_command(sys.argv),
            inputs=_shapes(inputs),
            images=images,
            fine_tuned=self.fine_tuned,
            versions=(("Python", platform.python_version()), *map(_version, PACKAGES)),
            machine=f"{platform.system()} {platform.machine()}, {_processor()}",
            threads=torch.get_num_threads(),
            device=_device(model),
            seed=torch.initial_seed(),
        )


def call_text(function: Callable[..., object], given: Mapping[str, object]) -> str:
    """A call as it is written in Python, without the options that are at their default.

    >>> def prune(model, *, ratio=None, **target): ...
    >>> call_text(prune, {"model": object(), "ratio": None, "target": {"keep_macs": 0.5}})
    'selector.prune(model, keep_macs=0.5)'
    """
    needed, targets, options = [], [], []
    for name, parameter in inspect.signature(function).parameters.items():
        value = given[name]
        if parameter.kind is parameter.VAR_KEYWORD and isinstance(value, Mapping):
            targets = [f"{key}={_value_text(one)}" for key, one in value.items()]
        elif parameter.default is parameter.empty:
            needed.append(name)
        elif not _is_default(value, parameter.default):
            options.append(f"{name}={_value_text(value)}")
    return f"selector.{function.__name__}({', '.join([*needed, *targets, *options])})"


def _is_default(value: object, default: object) -> bool:
    """Whether a value is the default; arrays are not compared element by element."""
    if isinstance(default, tuple | list) and isinstance(value, tuple | list):
        return list(value) == list(default)
    return value is default or (type(value) is type(default) and bool(value == default))


def _value_text(value: object) -> str:
    """An argument's value; the kind of those that have no short text."""
    if isinstance(value, Path):
        return repr(str(value))
    if _is_plain(value):
        text = repr(value)
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return str(getattr(value, "__name__", f"<{type(value).__name__}>"))


def _is_plain(value: object) -> bool:
    """Whether a value is a number or text, or holds nothing else."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, [*value.keys(), *value.values()]))
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


def typed_command(arguments: Sequence[str]) -> str | None:
    """What was typed, where it was this project's command; other programs keep theirs private.

    >>> typed_command(["/usr/bin/saliency-selector", "prune", "--data", "my images"])
    "saliency-selector prune --data 'my images'"
    >>> typed_command(["train.py", "--key", "secret"]) is None
    True
    """
    program = Path(arguments[0]) if arguments else Path()
    if program.name != COMMAND and program.parts[-3:] != ("selector", "cli", "__main__.py"):
        return None
    return shlex.join([COMMAND, *arguments[1:]])


def _shapes(inputs: object) -> tuple[str, ...]:
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return tuple(" x ".join(map(str, tensor.shape[1:])) or "1" for tensor in tensors)


def _version(package: str) -> tuple[str, str]:
    try:
        return package, version(package)
    except PackageNotFoundError:
        return package, "not installed"


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or "processor unknown"


def _device(model: nn.Module) -> str:
    device = device_of(model)
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return str(device)
