"""`choose`: which channels go from every group, which metric says so, and what it will cost."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Unpack

from torch import nn

from selector.data.batches import Batches
from selector.data.calibration import Calibration
from selector.data.checks import check_model
from selector.data.exclusive import one_at_a_time
from selector.data.forward import probe_inputs
from selector.data.loss import Loss
from selector.data.own_forward import Forward
from selector.errors import SelectorError
from selector.learning.explain import explain_many
from selector.learning.selector import SaliencySelector
from selector.network.latency import Clock
from selector.network.tracing import find_groups
from selector.planning.candidates import Survey, Trial, survey_network
from selector.planning.composition.myopic import Myopic
from selector.planning.composition.plan import plan_myopically
from selector.planning.criteria import Verify
from selector.planning.forecast import expected_of
from selector.planning.limits import Limits, Shares
from selector.planning.method import AllocationName, Method, method_of
from selector.planning.plan import Goal, Plan
from selector.planning.stage import Stage, asked_widths
from selector.planning.target import Target, Targets
from selector.records.decision import Decision

UNLIKE = (
    "the network is unlike those that the selector learnt from: its widths are measured, and most "
    "of its groups keep the arm that is best on average"
)


@one_at_a_time
def choose(
    model: nn.Module,
    batches: Batches,
    *,
    criterion: str = "selector",
    verify: Verify = 0,
    selector: SaliencySelector | None = None,
    loss: Loss | None = None,
    forward: Forward | None = None,
    ignore: Iterable[str] = (),
    allocation: AllocationName = "auto",
    myopic: Myopic | None = None,
    compensate: bool = False,
    max_ratio: float = 0.9,
    max_ratios: Shares | None = None,
    ratios: Shares | None = None,
    round_to: int = 1,
    min_channels: int = 1,
    latency_inputs: object | None = None,
    progress: bool = False,
    **target: Unpack[Targets],
) -> Plan:
    """Choose what to remove, in one step, without touching the model.

    Args:
        model: A trained network.
        batches: Re-iterable of (inputs, targets). With `verify`, every second batch measures; with
            criterion `oracle`, the others alone score.
        criterion: `selector`, the name of a metric or of a proposal of sets, or `oracle` (group
            after group, every arm's candidate is removed in turn, and the best measured taken).
        verify: How many of the selector's candidates are tried in the groups where half of the
            predicted damage is, the whole plan being measured with each: what makes its loss lower
            is taken. With `all`, every arm's candidates are tried in every group. The plan's own
            loss change is measured in any case.
        selector: Asked by criterion `selector` alone; the shipped one by default.
        loss: Mean loss of a batch; cross-entropy by default.
        forward: Runs the network on a batch, as `forward(model, batch)`; see `prune`.
        ignore: Groups that are not pruned, by name; a layer's name stands for its whole group.
        allocation: `even`, the same share of every group; `damage`, where the selector predicts
            the least loss change per unit saved, whichever criterion chooses the channels;
            `measured`, where the least is measured, group by group, on 32 images without their
            labels; or `myopic`, with criterion `oracle`: one channel at a time over the whole
            network, as in arXiv 2004.03376. `auto` is `even` but for criterion `selector` and a
            budget: there it is `damage`, or `measured` where most of the selector's predictions lie
            outside of what it learnt from.
        myopic: How that goes about it; as in the paper by default.
        compensate: Let the oracle measure with the removed channels' means in their place.
        max_ratio: Largest share of a group's channels that may go, in (0, 1).
        max_ratios: The same for single groups, by name.
        ratios: Share of the channels that single groups lose, by name, whatever the target asks of
            the others; without a target, the others lose nothing.
        round_to: Widths that are left are multiples of this, the nearest to what is asked.
        min_channels: Channels of a layer that are left at least.
        latency_inputs: For `keep_latency`, what the network is called with where latency matters,
            one image for example; by default eight images of the first batch.
        progress: Show progress bars.
        **target: One of `keep_macs`, `keep_params`, `keep_weights`, `keep_latency` (share of the
            network's multiply-accumulates, parameters, convolution weights or seconds on this
            machine that stays) or `ratio` (share of every group's channels that goes), each in
            (0, 1).

    Returns:
        The plan; `selector.apply_plan(model, plan)` carries it out.

    Raises:
        SelectorError: Unusable input, unknown names, or a target that cannot be met.
    """
    check_model(model)
    calibration = Calibration(batches, loss)
    wanted = Target.of(target, ratios)
    method = method_of(
        criterion,
        wanted,
        verify=verify,
        selector=selector,
        allocation=allocation,
        myopic=myopic,
        compensate=compensate,
    )
    limits = Limits.of(
        ignore=ignore,
        max_ratio=max_ratio,
        max_ratios=max_ratios,
        ratios=ratios,
        round_to=round_to,
        min_channels=min_channels,
    )
    stage = first_stage(model, calibration, wanted, limits, latency_inputs)
    if method.myopic is not None:
        return plan_stage(model, calibration, stage, method)
    survey = surveyed(model, calibration, stage, method)
    trial = Trial(
        model=model,
        survey=survey,
        recalibrate=method.recalibrate,
        whole=True,
        progress=progress,
    )
    plan = explained(plan_surveyed(trial, stage, method), survey, method.selector)
    return replace(plan, expected=expected_of(model, plan, survey, method.selector))


def first_stage(
    model: nn.Module,
    calibration: Calibration,
    target: Target,
    limits: Limits,
    latency_inputs: object | None = None,
) -> Stage:
    """An unpruned network's groups, limits and costs, with all of the way to the target ahead.

    Raises:
        SelectorError: Unknown names, or limits in contradiction.
    """
    if latency_inputs is not None and target.measure != "latency":
        raise SelectorError(
            f"latency_inputs does nothing with {target.name}; leave it out, or use keep_latency"
        )
    groups = limits.groups(find_groups(model, probe_inputs(model, calibration)))
    widths = limits.widths(groups)
    clock = None
    if target.measure == "latency":
        clock = Clock.of(model, groups.prunable, calibration, latency_inputs)
    return Stage(groups, widths, target, 1.0, groups.costs, clock)


def plan_stage(model: nn.Module, calibration: Calibration, stage: Stage, method: Method) -> Plan:
    """Choose how many channels go from every group in this round, and which."""
    if method.myopic is not None:
        plan = plan_myopically(model, calibration, stage, method.myopic, criterion=str(method))
        return _judged(plan, stage)
    survey = surveyed(model, calibration, stage, method)
    trial = Trial(model=model, survey=survey, recalibrate=method.recalibrate)
    return plan_surveyed(trial, stage, method)


def surveyed(
    model: nn.Module,
    calibration: Calibration,
    stage: Stage,
    method: Method,
    unlike: bool | None = None,
) -> Survey:
    """What this way of choosing has to know of the network before it can plan.

    Args:
        model: The network as it is.
        calibration: The user's data.
        stage: Where it stands.
        method: How channels are chosen.
        unlike: Whether the unpruned network was unlike those that the selector learnt from; None to
            find out.
    """
    return survey_network(
        model,
        calibration,
        stage,
        method.criterion,
        pricing=method.pricing,
        unlike=unlike if method.cautious else False,
        compensate=method.compensate,
    )


def plan_surveyed(trial: Trial, stage: Stage, method: Method) -> Plan:
    """The same once the network has been surveyed: for trying several step sizes.

    Args:
        trial: The network, its scores, and how candidates are tried.
        stage: Where it stands, and how far to go.
        method: How channels are chosen.
    """
    spent = method.allocation.allocate(stage, trial, method.criterion)
    counts = {stage.groups.prunable[name]: n for name, n in spent.counts.items() if n}
    options = method.criterion.options(trial.survey, counts)
    decided = method.criterion.decide(trial, options)
    images = spent.oracle_images + decided.oracle_images
    plan = Plan.of_groups(method.named(spent.text), decided.choices, stage.groups, images)
    if trial.survey.unlike:
        plan = replace(plan, warnings=(*plan.warnings, UNLIKE))
    return _judged(replace(plan, measured=decided.measured), stage)


def explained(plan: Plan, survey: Survey, selector: SaliencySelector | None) -> Plan:
    """The plan with the reasons for every choice that a selector made.

    Reasons take longer than predictions, so they are made only for plans that are kept.

    Args:
        plan: What goes.
        survey: Of the network for which the plan was made.
        selector: Who chose; None where no selector did, and nothing is to be explained.
    """
    if selector is None:
        return plan
    decisions = [
        Decision(survey.views[choice.group], len(choice.remove)) for choice in plan.choices
    ]
    reasons = explain_many(selector, decisions)
    choices = [
        replace(choice, explanation=reason)
        for choice, reason in zip(plan.choices, reasons, strict=True)
    ]
    return replace(plan, choices=tuple(choices))


def _judged(plan: Plan, stage: Stage) -> Plan:
    """The plan with what was asked and what it gives."""
    asked = asked_widths(stage)
    choices = [replace(choice, asked=asked.get(choice.group)) for choice in plan.choices]
    counts = {choice.group: len(choice.remove) for choice in choices}
    kept = [
        f"{name} keeps all its {group.channels} channels: {asked[name]:.1f} were asked, and no "
        "allowed width is nearer"
        for name, group in stage.groups.prunable.items()
        if name in asked and name not in counts and stage.share == 1
        if group.channels == stage.widths.original[name]
    ]
    return replace(
        plan,
        choices=tuple(choices),
        goal=goal_of(stage, counts),
        warnings=plan.warnings + tuple(kept),
    )


def goal_of(stage: Stage, counts: Mapping[str, int]) -> Goal:
    """What was asked of the network by now, and what taking these channels gives."""
    target, widths = stage.target, stage.widths
    if target.measure != "channels":
        keep = target.keep**stage.share
        return Goal(target.name, keep, stage.cost(counts) / stage.start_cost)
    asked = asked_widths(stage)
    width = sum(widths.original[name] for name in asked)
    lost = stage.lost(counts)
    got = sum(lost[name] * widths.original[name] for name in asked) / width
    return Goal(target.name, 1 - sum(asked.values()) / width, got)
