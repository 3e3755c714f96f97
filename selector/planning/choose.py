"""`choose`: which channels go from every group, which metric says so, and what it will cost."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import nn
from typing_extensions import Unpack

from selector.data.batches import Batches, check_batches
from selector.data.forward import probe_inputs
from selector.data.loss import Loss
from selector.errors import SelectorError
from selector.learning.selector import SaliencySelector
from selector.network.latency import Clock
from selector.network.tracing import find_groups
from selector.planning.allocation import allocated, asked_widths
from selector.planning.candidates import Survey, options_of, survey_network
from selector.planning.composition.myopic import Myopic
from selector.planning.composition.plan import plan_myopically
from selector.planning.forecast import expected_of
from selector.planning.limits import Shares, Widths, by_group, without
from selector.planning.method import Allocation, Method, Verify
from selector.planning.plan import Goal, Plan
from selector.planning.stage import Stage
from selector.planning.target import Target, Targets
from selector.planning.verification import Referee, composed


def choose(
    model: nn.Module,
    batches: Batches,
    *,
    criterion: str = "selector",
    verify: Verify = 0,
    selector: SaliencySelector | None = None,
    loss: Loss | None = None,
    ignore: Iterable[str] = (),
    allocation: Allocation = "auto",
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
        criterion: `selector`, a metric's name, or `oracle` (group after group, every arm's
            candidate is removed in turn, and the best measured taken).
        verify: How many of the selector's candidates are tried in the groups where half of the
            predicted damage is, the whole plan being measured with each: what makes its loss lower
            is taken. With `all`, every arm's candidates are tried in every group. The plan's own
            loss change is measured in any case.
        selector: Asked by criterion `selector` alone; the shipped one by default.
        loss: Mean loss of a batch; cross-entropy by default.
        ignore: Groups to leave alone, by name; a layer's name takes its whole group.
        allocation: `even`, the same share of every group, or `damage`, where the selector predicts
            the least loss change per unit saved (the default for a budget that the selector
            spends; `even` for a ratio, and for metrics named by hand), or `myopic`, with criterion
            `oracle`: one channel at a time over the whole network, as in arXiv 2004.03376.
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
    wanted = Target.of(target, ratios)
    method = Method(criterion, verify, selector, allocation, myopic, compensate).ready(wanted)
    stage = first_stage(
        model,
        batches,
        wanted,
        ignore=ignore,
        max_ratio=max_ratio,
        max_ratios=max_ratios,
        ratios=ratios,
        round_to=round_to,
        min_channels=min_channels,
        latency_inputs=latency_inputs,
    )
    if method.allocation == "myopic":
        return plan_stage(model, batches, stage, method, loss=loss, progress=progress)
    survey = survey_network(model, batches, stage, method, loss=loss)
    plan = plan_surveyed(model, survey, stage, method, loss=loss, whole=True, progress=progress)
    return replace(plan, expected=expected_of(model, plan, survey, loss))


def first_stage(
    model: nn.Module,
    batches: Batches,
    target: Target,
    *,
    ignore: Iterable[str],
    max_ratio: float,
    max_ratios: Shares | None,
    ratios: Shares | None,
    round_to: int,
    min_channels: int,
    latency_inputs: object | None,
) -> Stage:
    """An unpruned network's groups, limits and costs, with all of the way to the target ahead.

    Raises:
        SelectorError: Unusable batches, unknown names, limits out of range or in contradiction.
    """
    check_batches(batches)
    if latency_inputs is not None and target.measure != "latency":
        raise SelectorError(
            f"latency_inputs does nothing with {target.name}; leave it out, or use keep_latency"
        )
    groups = without(find_groups(model, probe_inputs(model, batches)), ignore)
    widths = Widths.of(
        groups.required(),
        max_ratio,
        round_to,
        min_channels=min_channels,
        max_ratios=by_group(groups, max_ratios, "max_ratios"),
        ratios=by_group(groups, ratios, "ratios"),
    )
    clock = None
    if target.measure == "latency":
        clock = Clock.of(model, groups.prunable, batches, latency_inputs)
    return Stage(groups, widths, target, 1.0, groups.costs, clock)


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
    if method.allocation == "myopic":
        how = method.myopic or Myopic()
        plan = plan_myopically(model, batches, stage, how, criterion=str(method), loss=loss)
        return _judged(plan, stage)
    survey = survey_network(model, batches, stage, method, loss=loss)
    return plan_surveyed(model, survey, stage, method, loss=loss, progress=progress)


def plan_surveyed(
    model: nn.Module,
    survey: Survey,
    stage: Stage,
    method: Method,
    *,
    loss: Loss | None,
    whole: bool = False,
    progress: bool = False,
) -> Plan:
    """The same once the network has been surveyed: for trying several step sizes.

    Args:
        model: The network.
        survey: Of it.
        stage: Where it stands, and how far to go.
        method: How channels are chosen.
        loss: Mean loss of a batch; cross-entropy by default.
        whole: Whether what the whole plan does is measured too, where candidates are verified.
        progress: Show progress bars.
    """
    options = {
        group: options_of(replace(survey.decisions[name], count=count), group, method)
        for name, count in allocated(stage, survey.decisions, method).items()
        if count
        for group in [stage.groups.prunable[name]]
    }
    choices, images, measured = [some[0] for some in options.values()], 0, None
    if method.criterion == "oracle":
        choices, images = composed(model, survey, options, loss=loss, progress=progress)
    elif method.verify and options:
        referee = Referee(model, survey, method, loss)
        choices = referee.best(options, progress=progress)
        measured = referee.change(dict(zip(options, choices, strict=True))) if whole else None
        images = referee.images
    plan = Plan.of_groups(str(method), choices, stage.groups, images)
    return _judged(replace(plan, measured=measured), stage)


def _judged(plan: Plan, stage: Stage) -> Plan:
    """The plan with what was asked beside what it gives."""
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
