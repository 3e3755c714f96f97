"""What a distillation did."""

from dataclasses import dataclass

from selector.repair.distillation.state import State
from selector.repair.distillation.task import Task


@dataclass(frozen=True)
class DistillationReport:
    """What a distillation did; prints as two lines."""

    images: int
    held_out: int
    """Images that were never trained on; the divergences are theirs."""
    passes: float
    """Over the images trained on."""
    seconds: float
    """Wall time, all in all."""
    divergence_before: float
    """Mean over the held-out images. For logits in nats, 16 times the divergence of the outputs at
    temperature 4; for other outputs the squared error as a share of their variance."""
    divergence_after: float
    learning_rate: float
    """Adam's rate at its peak."""
    batchnorm: str
    """`frozen`: trained with running statistics; `batch`: with those of every batch."""
    augmentation: str
    best_step: int
    """Step whose values were kept; 0 for those of the pruned network."""
    steps: int
    stopped_early: bool
    """Whether the held-out divergence rose before the schedule was over."""

    def __str__(self) -> str:
        stop = ", stopped early" if self.stopped_early else ""
        return (
            f"distilled on {self.images - self.held_out:,} unlabelled images, {self.passes:.3g} "
            f"passes in {self.seconds:.0f} s{stop} (rate {self.learning_rate:.2g}, BatchNorm: "
            f"{self.batchnorm}, augmentation: {self.augmentation})\n"
            f"divergence on {self.held_out:,} held-out images: {self.divergence_before:.4g} -> "
            f"{self.divergence_after:.4g} (values of step {self.best_step} of {self.steps})"
        )


def report_of(task: Task, state: State) -> DistillationReport:
    """The report of a run that is over."""
    run = state.progress
    return DistillationReport(
        images=task.images.count,
        held_out=task.images.count - len(task.training),
        passes=run.step / task.steps_in_pass,
        seconds=run.seconds,
        divergence_before=run.before,
        divergence_after=run.best,
        learning_rate=run.rate,
        batchnorm=run.batchnorm,
        augmentation=str(task.augmentation),
        best_step=run.best_step,
        steps=run.step,
        stopped_early=run.stopped,
    )
