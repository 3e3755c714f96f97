"""What one round knows of the network before it decides, and each group's candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from selector.allocation import Stage
from selector.errors import SelectorError
from selector.explaining import predicted_and_explained
from selector.facts import Decision, describe_group, describe_run
from selector.features import candidates, distinct
from selector.groups import ChannelSet, Group
from selector.measuring import FORWARD, PAIRS, measure_signals
from selector.method import Method
from selector.objective import Loss, Objective, image_losses
from selector.oracle import Oracle
from selector.plan import Choice
from selector.reading import Batches, evaluating, split_batches
from selector.rivals import LossChange, summary
from selector.saliency import arms, find_metric
from selector.scoring import needs_of, score_signals
from selector.shifts import Compensation, removed
from selector.signals import Signals


@dataclass(frozen=True, eq=False)
class Survey:
    """A network's scores, and the images that measure candidates: the same for any step size."""

    decisions: Mapping[str, Decision]
    """Group -> what the selector is asked; how many channels go is filled in later."""
    scoring: Batches
    measuring: Batches
    """Every second batch where the oracle is called, else the same ones."""
    base_loss: float
    """Of the network as it is, on the scoring images."""
    compensation: Compensation | None


def survey_network(
    model: nn.Module, batches: Batches, stage: Stage, method: Method, *, loss: Loss | None
) -> Survey:
    """Read the scoring images: once for all scores, once more for the means that are to be kept."""
    groups = stage.groups
    scoring = measuring = batches
    if method.measures:
        scoring, measuring = split_batches(batches, 2, "verification by the oracle")
    # Only the selector asks what channels do together.
    needs = needs_of(method.metrics) | (PAIRS if method.criterion == "selector" else FORWARD)
    signals = measure_signals(model, scoring, groups.prunable, needs=needs, loss=loss)
    decisions = {
        name: _decision(model, group, stage, signals[name], method.metrics)
        for name, group in groups.prunable.items()
    }
    run = next(iter(signals.values())).run if signals else None
    compensation = None
    if method.compensate:
        compensation = Compensation.measured(model, batches, groups.prunable.values())
    base_loss = float("nan") if run is None else run.loss
    return Survey(decisions, scoring, measuring, base_loss, compensation)


def _decision(
    model: nn.Module, group: Group, stage: Stage, found: Signals, metrics: Sequence[str]
) -> Decision:
    scores = score_signals({group.name: found}, metrics)[group.name]
    assert found.run is not None
    return Decision(
        facts=describe_group(model, group, stage.groups.costs, found),
        context=describe_run(found.run, stage.macs_kept),
        scores={name: values.numpy() for name, values in scores.items()},
        count=1,
        pairs=found.pairs,
    )


def options_of(decision: Decision, group: Group, method: Method) -> list[Choice]:
    """Distinct candidates of a group, the most promising first.

    Where they are measured, runner-ups are set later.
    """
    if method.criterion == "selector":
        assert method.selector is not None
        prediction, why = predicted_and_explained(method.selector, decision)
        kept = None if method.verify == "all" else max(2, method.verify)
        return [
            Choice(
                group=group.name,
                channels=group.channels,
                remove=prediction.proposals[arm],
                metric=arm,
                runner_up=prediction.runner_up,
                fell_back=prediction.fell_back and arm == prediction.trusted,
                predicted_nats=prediction.loss_change_nats[arm],
                measured=None,
                predicted_interval=prediction.loss_change_interval[arm],
                explanation=why,
            )
            for arm in prediction.shortlist(kept)
        ]
    oracle = method.criterion == "oracle"
    names = arms() if oracle else [_named(method.criterion, decision, group.name)]
    proposals = candidates(decision, names)
    return [
        Choice(group.name, group.channels, proposals[arm], arm, None, False, None, None)
        for arm in distinct(proposals, proposals)
    ]


def _named(metric: str, decision: Decision, group: str) -> str:
    if metric not in decision.scores:
        raise SelectorError(
            f"metric {metric!r} needs {find_metric(metric).needs}, and group {group!r} has none; "
            f"name the group in ignore, or use another criterion"
        )
    return metric


def verified(
    model: nn.Module,
    survey: Survey,
    group: Group,
    options: list[Choice],
    method: Method,
    *,
    loss: Loss | None,
    progress: bool,
) -> tuple[list[Choice], int]:
    """The options with the measured ones first, best in front; and the images evaluated.

    Args:
        model: The network, with what the plan takes from other groups masked.
        survey: The images that measure, and the means that compensate.
        group: The group that loses channels.
        options: Its candidates, the most promising first.
        method: How many of them are measured.
        loss: Mean loss of a batch; cross-entropy by default.
        progress: Show a progress bar.
    """
    every = method.criterion == "oracle" or method.verify == "all"
    count = len(options) if every else min(len(options), int(method.verify))
    sets = [option.remove for option in options[:count]]
    oracle = Oracle()
    if survey.compensation is not None:
        oracle = Oracle("compensated", survey.compensation.means)
    found = oracle.measure(model, survey.measuring, {group: sets}, loss=loss, progress=progress)
    changes = found.changes[group]
    measured = [
        replace(option, measured=change, fell_back=False)
        for option, change in zip(options, changes, strict=False)
    ]
    measured.sort(key=lambda option: option.measured.nats if option.measured else 0.0)
    return measured + options[count:], found.image_forwards


def whole_change(
    model: nn.Module,
    survey: Survey,
    gone: Sequence[tuple[Group, ChannelSet]],
    *,
    loss: Loss | None,
) -> LossChange:
    """What all of a plan together does to the loss, on the images that measure candidates.

    Two readings of those images: of the network as it is, and with the plan's channels masked.
    """
    objective = Objective(loss)
    with evaluating(model):
        before, _ = image_losses(model, survey.measuring, objective)
        with removed(model, gone, survey.compensation):
            after, _ = image_losses(model, survey.measuring, objective)
    return summary(after - before, len(before))
