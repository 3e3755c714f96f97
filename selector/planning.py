"""`choose`: which channels go from every group, which metric says so, and what it will cost."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from torch import nn
from typing_extensions import Unpack

from selector.allocation import Stage, Target, Targets, Widths, allocate_evenly
from selector.damage import allocate_by_damage, damage_curve
from selector.errors import SelectorError
from selector.explaining import predicted_and_explained
from selector.facts import Decision, describe_group, describe_run
from selector.features import candidates, distinct
from selector.groups import Group, masked
from selector.measuring import FORWARD, PAIRS, measure_signals
from selector.method import Allocation, Method, Verify
from selector.myopic import Myopic
from selector.myopic_plan import plan_myopically
from selector.objective import Loss
from selector.oracle import Oracle
from selector.plan import Choice, Plan
from selector.reading import Batches, check_batches, probe_inputs, split_batches
from selector.saliency import arms, find_metric
from selector.scoring import needs_of, score_signals
from selector.selection import SaliencySelector
from selector.signals import Signals
from selector.tracing import Groups, find_groups


def choose(
    model: nn.Module,
    batches: Batches,
    *,
    criterion: str = "selector",
    verify: Verify = 0,
    selector: SaliencySelector | None = None,
    loss: Loss | None = None,
    ignore: Iterable[str] = (),
    allocation: Allocation = "even",
    myopic: Myopic | None = None,
    max_ratio: float = 0.9,
    round_to: int = 1,
    progress: bool = False,
    **target: Unpack[Targets],
) -> Plan:
    """Choose what to remove, in one step, without touching the model.

    Args:
        model: A trained network.
        batches: Re-iterable of (inputs, targets). With an oracle, every second batch scores and the
            others measure.
        criterion: `selector`, a metric's name, or `oracle` (every arm's candidate is measured).
        verify: How many of the selector's candidates the oracle measures in every group, or `all`.
        selector: Asked by criterion `selector` alone; the shipped one by default.
        loss: Mean loss of a batch; cross-entropy by default.
        ignore: Groups to leave alone, by name; a layer's name takes its whole group.
        allocation: `even`, the same share of every group, or `damage`, where the selector predicts
            the least loss change per unit saved, or `myopic`, with criterion `oracle`: one channel
            at a time over the whole network, as in arXiv 2004.03376.
        myopic: How that goes about it; as in the paper by default.
        max_ratio: Largest share of a group's channels that may go, in (0, 1).
        round_to: Widths that are left must be a multiple of this.
        progress: Show progress bars.
        **target: One of `keep_macs`, `keep_params`, `keep_weights` (share of the network's
            multiply-accumulates, parameters or convolution weights that stays) or `ratio` (share of
            every group's channels that goes), each in (0, 1).

    Returns:
        The plan; `selector.apply_plan(model, plan)` carries it out.

    Raises:
        SelectorError: Unusable input, unknown names, or a target that cannot be met.
    """
    wanted = Target.of(target)
    method = Method(criterion, verify, selector, allocation, myopic).ready(wanted)
    check_batches(batches)
    groups = without(find_groups(model, probe_inputs(model, batches)), ignore)
    widths = Widths.of(groups.required(), max_ratio, round_to)
    stage = Stage(groups, widths, wanted, share=1.0, start=groups.costs)
    return plan_stage(model, batches, stage, method, loss=loss, progress=progress)


def without(groups: Groups, ignore: Iterable[str]) -> Groups:
    """The groups less those that hold one of these layers.

    Raises:
        SelectorError: A name that is no layer of any group.
    """
    prunable = dict(groups.prunable)
    refused = dict(groups.refused)
    for name in ignore:
        hit = [g.name for g in groups.prunable.values() if name == g.name or name in g.producers]
        if not hit and name not in refused:
            known = ", ".join(groups.prunable)
            raise SelectorError(f"ignore names {name!r}, which is no group; known: {known}")
        for group in hit:
            prunable.pop(group, None)
            refused[group] = "ignored, as asked"
    return Groups(prunable, refused, groups.costs)


def plan_stage(
    model: nn.Module,
    batches: Batches,
    stage: Stage,
    method: Method,
    *,
    loss: Loss | None,
    progress: bool = False,
) -> Plan:
    """Choose how many channels go from every group in this round, and which."""
    groups = stage.groups
    if method.allocation == "myopic":
        how = method.myopic or Myopic()
        return plan_myopically(model, batches, stage, how, criterion=str(method), loss=loss)
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
    counts = _allocated(stage, decisions, method)
    choices: list[Choice] = []
    images = 0
    with ExitStack() as already_gone:
        for name, count in counts.items():
            if not count:
                continue
            group = groups.prunable[name]
            options = _options(replace(decisions[name], count=count), group, method)
            if method.measures:
                options, cost = _verified(model, measuring, group, options, method, loss, progress)
                images += cost
            choice = replace(options[0], runner_up=_runner_up(options))
            choices.append(choice)
            if method.measures:
                # The next group's candidates are measured in the network that this choice leaves.
                already_gone.enter_context(masked(model, group, choice.remove))
    return Plan.of_groups(str(method), choices, groups, images)


def _allocated(stage: Stage, decisions: Mapping[str, Decision], method: Method) -> dict[str, int]:
    if method.allocation == "even":
        return allocate_evenly(stage)
    assert method.selector is not None
    curves = {
        name: damage_curve(method.selector, decision, stage.options(name))
        for name, decision in decisions.items()
    }
    return allocate_by_damage(stage, curves)


def _decision(
    model: nn.Module, group: Group, stage: Stage, found: Signals, metrics: Sequence[str]
) -> Decision:
    """What the selector is asked of a group; how many channels go is filled in later."""
    scores = score_signals({group.name: found}, metrics)[group.name]
    assert found.run is not None
    return Decision(
        facts=describe_group(model, group, stage.groups.costs, found),
        context=describe_run(found.run, stage.macs_kept),
        scores={name: values.numpy() for name, values in scores.items()},
        count=1,
        pairs=found.pairs,
    )


def _options(decision: Decision, group: Group, method: Method) -> list[Choice]:
    """Distinct candidates of a group, the most promising first; runner-ups are set later."""
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
                runner_up=None,
                fell_back=prediction.fell_back and arm == prediction.trusted,
                predicted_nats=prediction.loss_change_nats[arm],
                measured=None,
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


def _verified(
    model: nn.Module,
    batches: Batches,
    group: Group,
    options: list[Choice],
    method: Method,
    loss: Loss | None,
    progress: bool,
) -> tuple[list[Choice], int]:
    """The options with the measured ones first, best in front; and the images evaluated."""
    every = method.criterion == "oracle" or method.verify == "all"
    count = len(options) if every else min(len(options), int(method.verify))
    sets = [option.remove for option in options[:count]]
    found = Oracle().measure(model, batches, {group: sets}, loss=loss, progress=progress)
    changes = found.changes[group]
    measured = [
        replace(option, measured=change, fell_back=False)
        for option, change in zip(options, changes, strict=False)
    ]
    measured.sort(key=lambda option: option.measured.nats if option.measured else 0.0)
    return measured + options[count:], found.image_forwards


def _runner_up(options: Sequence[Choice]) -> str | None:
    return options[1].metric if len(options) > 1 else None
