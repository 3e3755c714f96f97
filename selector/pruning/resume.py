"""The state of a pruning after a round, in one file: a run that was stopped goes on from there."""

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from selector.data.loss import Evaluation
from selector.errors import SelectorError
from selector.planning.expectation import Expected
from selector.planning.plan import Plan
from selector.repair.distillation.report import DistillationReport
from selector.repair.report import LayerRepair, RepairReport
from selector.tensor_files import read_tensor_file, save_tensors

FILE = "state.safetensors"
HEADER = "pruning"


@dataclass(frozen=True, kw_only=True)
class PruningState:
    """How far a pruning has come, and what is known of the network as it is.

    A value: what is undone is put back as it was. The network's tensors are kept beside it.
    """

    step: Fraction
    """The part of the way to the target that the next round will do."""
    done: Fraction = Fraction(0)
    """The part that is done."""
    plans: tuple[Plan, ...] = ()
    """Of the rounds so far."""
    stopped: str | None = None
    """Why the target was not met, where the run had ended."""
    expected: Expected | None = None
    """What was expected before the first cut; None where a metric was named by hand."""
    unlike: bool | None = None
    """Whether the unpruned network is unlike those that the selector learnt from; None before that
    was asked."""
    evaluation: Evaluation | None = None
    """Of the network, on the calibration images."""
    finished: bool = False
    """Whether what follows the last round is done."""
    repaired: RepairReport | None = None
    """What the last repair did to every layer."""
    unrepaired: Evaluation | None = None
    """Of the network before the last repair, on the images of the report."""
    not_repaired: str | None = None
    """Why the last repair was impossible."""
    distilled: DistillationReport | None = None
    undistilled: Evaluation | None = None
    """Of the network before distillation, on the images of the report."""


class RoundStore:
    """A folder that holds the state of one pruning.

    Args:
        folder: Made where it is missing.
        fingerprint: Of the network, the data and the options; see `data/fingerprint.py`.

    Raises:
        SelectorError: The folder cannot be made.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self._file, self._fingerprint = Path(folder) / FILE, fingerprint
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SelectorError(f"checkpoint={str(folder)!r} cannot be made: {error}") from error

    def save(self, progress: PruningState, model: nn.Module) -> None:
        """Write the state, whole or not at all.

        Raises:
            SelectorError: The file cannot be written.
        """
        header = {
            "fingerprint": self._fingerprint,
            "plans": [plan.to_json() for plan in progress.plans],
            "done": str(progress.done),
            "step": str(progress.step),
            "stopped": progress.stopped,
            "expected": None if progress.expected is None else asdict(progress.expected),
            "evaluation": None if progress.evaluation is None else asdict(progress.evaluation),
            "distilled": None if progress.distilled is None else asdict(progress.distilled),
            "undistilled": None if progress.undistilled is None else asdict(progress.undistilled),
            "unlike": progress.unlike,
            "finished": progress.finished,
            "repaired": None if progress.repaired is None else asdict(progress.repaired),
            "unrepaired": None if progress.unrepaired is None else asdict(progress.unrepaired),
            "not_repaired": progress.not_repaired,
        }
        tensors = {n: x for n, x in model.state_dict().items() if isinstance(x, Tensor)}
        save_tensors(self._file, tensors, HEADER, header)

    def load(self) -> tuple[PruningState, dict[str, Tensor]] | None:
        """The state and the network's tensors; None where nothing was written yet.

        Raises:
            SelectorError: The file is damaged, or of another pruning.
        """
        if not self._file.exists():
            return None
        try:
            tensors, header = read_tensor_file(self._file, HEADER)
        except SelectorError as error:
            raise SelectorError(
                f"{self._file} is damaged ({error}); delete it to begin again"
            ) from error
        try:
            if header["fingerprint"] != self._fingerprint:
                raise SelectorError(
                    f"checkpoint={str(self._file.parent)!r} holds the state of another pruning: "
                    "the network, the data or an option is not the same; pass another folder, or "
                    f"delete {FILE} there to begin again"
                )
            return _progress(header), tensors
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            if isinstance(error, SelectorError):
                raise
            raise SelectorError(
                f"{self._file} is damaged ({error!r:.200}); delete it to begin again"
            ) from error


def _progress(header: dict[str, Any]) -> PruningState:
    expected, evaluation = header["expected"], header["evaluation"]
    if expected is not None:
        for name in ("loss_change_interval", "accuracy_interval"):
            expected[name] = None if expected[name] is None else tuple(expected[name])
    return PruningState(
        plans=tuple(Plan.from_json(text) for text in header["plans"]),
        done=Fraction(header["done"]),
        step=Fraction(header["step"]),
        stopped=header["stopped"],
        expected=None if expected is None else Expected(**expected),
        evaluation=None if evaluation is None else Evaluation(**evaluation),
        unlike=header["unlike"],
        finished=bool(header["finished"]),
        distilled=None
        if header["distilled"] is None
        else DistillationReport(**header["distilled"]),
        undistilled=None if header["undistilled"] is None else Evaluation(**header["undistilled"]),
        repaired=None if header["repaired"] is None else _repair_report(**header["repaired"]),
        unrepaired=None if header["unrepaired"] is None else Evaluation(**header["unrepaired"]),
        not_repaired=header["not_repaired"],
    )


def _repair_report(layers: list[dict[str, Any]], images: int, notes: list[str]) -> RepairReport:
    return RepairReport(tuple(LayerRepair(**row) for row in layers), images, tuple(notes))
