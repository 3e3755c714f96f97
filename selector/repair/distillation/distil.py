"""`distil`: a pruned network learns to give the unpruned one's outputs, without labels."""

import math
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree
from tqdm import tqdm

from selector.data.exclusive import one_at_a_time
from selector.data.forward import device_of
from selector.data.own_forward import Forward
from selector.errors import SelectorError
from selector.network.copying import copy_of
from selector.repair.distillation.augmentation import Augment, Augmentation
from selector.repair.distillation.report import DistillationReport, report_of
from selector.repair.distillation.state import (
    DistillationState,
    State,
    read_progress,
    restore,
    save,
)
from selector.repair.distillation.task import Task, make_task
from selector.repair.distillation.training import (
    RATE,
    BatchNormMode,
    Budget,
    TrainingRecipe,
    chosen_recipe,
    fresh_state,
    is_trained_normalisation,
    train,
)
from selector.repair.distillation.unlabelled import Images, Unlabelled, fingerprint
from selector.repair.pruned import Pruned, parts_of


class Distilled(NamedTuple):
    """A distilled network, and what was done."""

    model: nn.Module
    """A copy; the networks passed in are as they were."""
    report: DistillationReport


@one_at_a_time
def distil(
    original: nn.Module,
    pruned: nn.Module | Pruned,
    images: Unlabelled,
    *,
    minutes: float | None = None,
    passes: float | None = None,
    augment: Literal["shift"] | Augment | None = "shift",
    mirror: bool = False,
    blocks: bool = False,
    learning_rate: float | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    forward: Forward | None = None,
) -> Distilled:
    """Train a copy of the pruned network to give the unpruned network's outputs; no labels needed.

    A fifth of the images is held out. The divergence on them chooses what BatchNorm goes by, in two
    short trials, lowers the learning rate where training breaks the network, and chooses the values
    that are returned: they never have a larger divergence than the pruned network. Dropout stays
    off. With `passes`, the same seed gives the same weights on the same machine; with `minutes`,
    the number of steps depends on its speed.

    Args:
        original: The unpruned network.
        pruned: Its pruned copy, or the result of `prune`. Parameters that require no gradient stay
            as they are.
        images: Batches of inputs, or of (inputs, targets) whose targets are ignored. They are read
            once and kept in memory.
        minutes: Wall time to spend, trials included; the schedule is fitted to it.
        passes: Passes over the images that are trained on; the trials come on top.
        augment: `shift` moves image tensors by up to an eighth of their side and leaves other
            inputs as they are; a function is called with the inputs of a batch and returns them
            changed; None changes nothing. Both networks see the same.
        mirror: Mirror half of the images as well. Never for digits, letters or traffic signs.
        blocks: Compare the outputs of the layers as well as those of the network.
        learning_rate: Adam's rate at its peak; by default 0.001. It is lowered where the divergence
            shows that training broke the network.
        seed: Draws the held-out images, the order and the augmentation.
        checkpoint: Folder for a state that is written during training; the same call goes on from
            it.
        progress: Show a progress bar.
        forward: Runs both networks on a batch, as for `prune`; it returns outputs here, not a loss.

    Returns:
        The distilled copy and what was done. The networks passed in are left as they are.

    Raises:
        SelectorError: Unusable arguments; too few images; networks that do not belong together,
            cannot be trained, or give no finite or no repeatable outputs.
    """
    began = perf_counter()
    _check_numbers(minutes, passes, learning_rate, seed)
    model, cuts = parts_of(pruned)
    _check_trainable(model)
    device = device_of(model)
    # The caller may be inside no_grad, inference_mode or autocast; training is in full precision.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        student = copy_of(model)
        data = Images.read(images, device)
        augmentation = Augmentation.of(augment, mirror, data.inputs)
        compared = (cuts or ()) if blocks else None
        task = make_task(original, student, data, augmentation, compared, seed)
        steps = None if passes is None else max(1, round(passes * task.steps_in_pass))
        budget = Budget(steps, None if minutes is None else 60 * minutes)
        call = _Call(task, student, budget, learning_rate, blocks)
        state = call.run(None if checkpoint is None else Path(checkpoint), began, progress)
    student.zero_grad(set_to_none=True)
    return Distilled(student, report_of(task, state))


@dataclass(frozen=True, eq=False)
class _Call:
    """A call of `distil` once its arguments are known to be usable."""

    task: Task
    student: nn.Module
    budget: Budget
    learning_rate: float | None
    blocks: bool

    def run(self, folder: Path | None, began: float, show: bool) -> State:
        """Go on from the folder's state, or begin, and train to the end."""
        mark = "" if folder is None else self._fingerprint()
        saved = None if folder is None else read_progress(folder, mark)
        if saved is None:
            state = self._begin(began)
        else:
            state = self._resumed(*saved, perf_counter() - began)
        with tqdm(total=1.0, desc="distillation", disable=not show, leave=False) as bar:
            bar.update(round(state.progress.phase, 3))

            def report(now: State) -> None:
                if folder is not None:
                    save(folder, now, mark)
                bar.update(round(now.progress.phase - bar.n, 3))

            train(self.task, state, self.budget, report)
        return state

    def _begin(self, began: float) -> State:
        before = self.task.reading(self.student)
        if not math.isfinite(before):
            raise SelectorError(
                f"the divergence of the pruned network is {before} on the held-out images: its "
                "outputs are not all finite; check its weights, or prune less"
            )
        start = DistillationState(
            rate=RATE,
            batchnorm="frozen",
            before=before,
            best=before,
            seconds=perf_counter() - began,
        )
        recipes = _recipes(self.student, self.learning_rate)
        recipe = chosen_recipe(self.task, self.student, recipes, self.budget, start)
        return fresh_state(self.student, recipe, before, start.seconds)

    def _resumed(
        self, progress: DistillationState, tensors: dict[str, torch.Tensor], seconds: float
    ) -> State:
        recipe = TrainingRecipe(
            progress.rate, "batch" if progress.batchnorm == "batch" else "frozen"
        )
        state = fresh_state(self.student, recipe, progress.before, progress.seconds)
        state.progress = progress
        progress.seconds += seconds
        restore(state, tensors)
        return state

    def _fingerprint(self) -> str:
        """A hash of everything that the result depends on."""
        task = self.task
        said = (self.budget, self.learning_rate, self.blocks, str(task.augmentation), task.seed)
        values = [*self.student.state_dict().values(), *task.teacher.state_dict().values()]
        return fingerprint([repr(said), *values, *pytree.tree_leaves(task.images.inputs)])


def _recipes(student: nn.Module, learning_rate: float | None) -> list[TrainingRecipe]:
    """What the held-out divergence chooses from, the default first."""
    rate = RATE if learning_rate is None else learning_rate
    modes: list[BatchNormMode] = ["frozen"]
    if any(is_trained_normalisation(layer) for layer in student.modules()):
        modes.append("batch")
    return [TrainingRecipe(rate, mode) for mode in modes]


def _check_numbers(
    minutes: float | None, passes: float | None, learning_rate: float | None, seed: int
) -> None:
    if (minutes is None) == (passes is None):
        given = "neither" if minutes is None else "both"
        raise SelectorError(
            f"{given} of minutes and passes was given; say how long to train by one of them, for "
            "example minutes=1 or passes=12"
        )
    numbers = {"minutes": minutes, "passes": passes, "learning_rate": learning_rate}
    for name, value in numbers.items():
        if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise SelectorError(f"{name}={value!r} must be a number above 0")
    if not isinstance(seed, int) or seed < 0:
        raise SelectorError(f"seed={seed!r} must be a whole number, 0 or more")


def _check_trainable(model: nn.Module) -> None:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise SelectorError(
            "the pruned network has no parameter that requires a gradient, so nothing can be "
            "trained; call pruned.requires_grad_(True) on what may change"
        )
    for name, parameter in trained:
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise SelectorError(
                f"parameter {name!r} is {parameter.dtype}, too coarse to train; pass "
                "original.float() and pruned.float(), and inputs of that type"
            )
