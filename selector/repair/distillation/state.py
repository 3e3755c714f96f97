"""A distillation that was interrupted: its state in a folder, and the way back."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from selector.errors import SelectorError
from selector.files import read_text, write_text
from selector.serialisation import of_json
from selector.tensor_files import read_tensor_file, save_tensors

FILE = "state.json"
TENSORS = re.compile(r"state-\d{7,12}\.safetensors")
SECTION = "distillation"


@dataclass
class DistillationState:
    """Where a training run stands; everything but tensors."""

    rate: float
    """Peak learning rate of Adam."""
    batchnorm: str
    """`frozen` or `batch`."""
    before: float
    """Held-out divergence of the pruned network."""
    best: float
    """Least held-out divergence so far, and the step after which it was reached."""
    best_step: int = 0
    step: int = 0
    """Steps done."""
    phase: float = 0.0
    """Share of the cycle that is behind, in [0, 1]."""
    seconds: float = 0.0
    """Wall time since the call began."""
    first_step: int = 0
    first_second: float = 0.0
    """Where the present cycle began; later than 0 after a second start with a smaller rate."""
    looks: int = 0
    readings: list[float] = field(default_factory=list)
    """Held-out divergences of the present cycle, one at each look."""
    stopped: bool = False
    """Whether the run ended before its budget, because the divergence rose."""


@dataclass
class State:
    """A network in training: the copy, Adam's moments, and the best values so far."""

    student: nn.Module
    optimizer: torch.optim.Adam
    progress: DistillationState
    best: dict[str, Tensor]
    """Values of the student's state dict where the held-out divergence was least."""

    def keep_best(self) -> None:
        """Remember the present values as the best."""
        self.best = {name: t.detach().clone() for name, t in self.student.state_dict().items()}


def put_values(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values into a network in place, so that tied weights stay tied."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(values[name])


def parameters_of(optimizer: torch.optim.Adam) -> list[nn.Parameter]:
    """All parameters that an optimizer trains, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def save(folder: Path, state: State, fingerprint: str) -> None:
    """Write a state that `restore` reads; the one before it stays valid until this one is whole.

    Raises:
        SelectorError: The folder or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SelectorError(f"checkpoint={folder} cannot be made: {error}") from error
    tensors = {f"now.{k}": t for k, t in state.student.state_dict().items()}
    tensors |= {f"best.{k}": t for k, t in state.best.items()}
    for number, parameter in enumerate(parameters_of(state.optimizer)):
        for name, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{number}.{name}"] = value
    file = f"state-{state.progress.step:07d}.safetensors"
    save_tensors(folder / file, tensors, SECTION, {"fingerprint": fingerprint})
    about = {"fingerprint": fingerprint, "tensors": file, "progress": asdict(state.progress)}
    write_text(folder / FILE, json.dumps(about, indent=1))
    for old in folder.glob("state-*.safetensors"):
        if old.name != file:
            old.unlink(missing_ok=True)


def read_progress(
    folder: Path, fingerprint: str
) -> tuple[DistillationState, dict[str, Tensor]] | None:
    """The progress and tensors that a folder holds; None where nothing was saved yet.

    Raises:
        SelectorError: The files are damaged, or belong to a call with other arguments.
    """
    if not (folder / FILE).is_file():
        return None
    try:
        about = of_json(read_text(folder / FILE, "the state"), _Saved, "a state of ours")
        if not TENSORS.fullmatch(about.tensors):
            raise SelectorError(f"{about.tensors!r:.80} is no file of a state")
        tensors, _ = read_tensor_file(folder / about.tensors, SECTION)
    except SelectorError as error:
        raise SelectorError(
            f"checkpoint={folder} holds a damaged state ({error}); delete the folder to start again"
        ) from error
    if about.fingerprint != fingerprint:
        raise SelectorError(
            f"checkpoint={folder} belongs to other networks, images or arguments; pass another "
            "folder, or delete it to start again"
        )
    return about.progress, tensors


@dataclass(frozen=True)
class _Saved:
    """What stands in a state's JSON."""

    fingerprint: str
    tensors: str
    progress: DistillationState


def restore(state: State, tensors: dict[str, Tensor]) -> None:
    """Put saved tensors into a state that was made for the same networks."""
    parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "adam": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        parts[kind][name] = tensor
    put_values(state.student, parts["now"])
    state.keep_best()
    for name, tensor in state.best.items():
        tensor.copy_(parts["best"][name])
    parameters = parameters_of(state.optimizer)
    for key, tensor in parts["adam"].items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        # Adam counts steps on the CPU, and keeps its moments beside the parameter.
        value = tensor if name == "step" else tensor.to(parameter.device)
        state.optimizer.state[parameter][name] = value
