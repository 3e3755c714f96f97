"""What one round knows of the network before it decides, and each group's candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from selector.data.batches import Batches, split_batches
from selector.data.loss import Loss
from selector.errors import SelectorError
from selector.learning.explain import predicted_and_explained
from selector.learning.features import candidates, distinct
from selector.network.compensation import Compensation
from selector.network.groups import Group
from selector.planning.choice import Choice
from selector.planning.method import Method
from selector.planning.stage import Stage
from selector.records.decision import Decision
from selector.records.describe import describe_group, describe_run
from selector.saliency.registry import arms, find_metric
from selector.saliency.scoring import needs_of, score_signals
from selector.statistics.channel_statistics import Signals
from selector.statistics.collect import FORWARD, PAIRS, measure_signals


@dataclass(frozen=True, eq=False)
class Survey:
    """A network's scores, and the images that measure candidates: the same for any step size."""

    decisions: Mapping[str, Decision]
    """Group -> what the selector is asked; how many channels go is filled in later."""
    scoring: Batches
    """Every second batch where the oracle alone decides, else all."""
    measuring: Batches
    """Every second batch where the oracle is called: those that did not score, if not all did."""
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
        half, measuring = split_batches(batches, 2, "verification by the oracle")
        scoring = half if method.criterion == "oracle" else batches
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
