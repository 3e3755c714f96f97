"""What a pruning did, as values: the network before and after, round by round, group by group."""

from dataclasses import dataclass, field

from selector.data.loss import Evaluation
from selector.network.footprint import Footprint
from selector.network.latency import Timed
from selector.planning.expectation import Expected
from selector.planning.plan import Goal
from selector.pruning.run_info import RunInfo
from selector.repair.distillation.report import DistillationReport
from selector.repair.report import RepairReport


@dataclass(frozen=True)
class GroupRow:
    """One group over all rounds."""

    group: str
    channels_before: int
    """Removable channels; each is several filters where convolutions are grouped."""
    channels_after: int
    trusted: tuple[tuple[str, int], ...]
    """Metrics with the channels that each removed, the most first."""
    runner_up: str | None
    fell_back: int
    """Rounds in which the single best metric was kept for want of a credible gain."""
    predicted_nats: float | None
    """Sum of the rounds' predicted loss changes."""
    measured_nats: float | None
    """Sum of the rounds' measured loss changes, where every one was measured."""
    asked: float | None = None
    """Channels that were to be left, before rounding to an allowed width."""


@dataclass(frozen=True)
class StepRow:
    """One round."""

    macs_kept: float
    """Share of the unpruned network's multiply-accumulates that is left."""
    predicted_nats: float | None
    """Sum of the groups' predicted loss changes."""
    measured_nats: float | None
    """By how much the loss on the calibration images rose by cut and recalibration."""
    halved: int
    """How often the step was halved."""
    loss: float | None
    """On the calibration images, after cut, recalibration and fine-tuning."""
    accuracy: float | None = None
    """On the calibration images, too; None where it has no meaning."""


@dataclass(frozen=True)
class LayerRow:
    """One convolution or linear layer, before and after."""

    layer: str
    kind: str
    group: str | None
    """Root of the group that its outputs belong to; None where they are not pruned."""
    outputs: tuple[int, int]
    inputs: tuple[int, int]
    macs: tuple[float, float]
    """Multiply-accumulates per image."""
    parameters: tuple[int, int]


@dataclass(frozen=True)
class ReportValues:
    """All that is known of a pruning; `Report` prints and saves it."""

    criterion: str
    rounds: int
    rows: tuple[GroupRow, ...]
    macs: tuple[float, float]
    """Multiply-accumulates per image of convolutions and linear layers, before and after."""
    parameters: tuple[float, float]
    before: Evaluation
    after: Evaluation
    images_from: str
    """Which images the losses and accuracies were measured on."""
    oracle_images: int
    refused: tuple[tuple[str, str], ...]
    steps: tuple[StepRow, ...] = ()
    goal: Goal | None = None
    expected: Expected | None = None
    """What was said before the first cut, of the calibration images."""
    warnings: tuple[str, ...] = ()
    latency: Timed | None = field(default=None, compare=False)
    """Of a forward pass on this machine; None where it was not measured."""
    repair: RepairReport | None = None
    """What the last repair did to every layer."""
    unrepaired: Evaluation | None = None
    """The pruned network before its last repair, on the same images."""
    distillation: DistillationReport | None = None
    """How the network was trained towards the unpruned one's outputs."""
    undistilled: Evaluation | None = None
    """The network before that, on the same images."""
    layers: tuple[LayerRow, ...] = ()
    """Convolutions and linear layers, in the order of the network's modules."""
    footprints: tuple[Footprint, Footprint] | None = None
    """Memory before and after; None where it was not measured."""
    calibrated: tuple[Evaluation | None, Evaluation | None] = (None, None)
    """Before and after, on the calibration images; None where they have no loss, or it was not
    needed."""
    run: RunInfo | None = field(default=None, compare=False)
    """When, how and with what the pruning was made."""
