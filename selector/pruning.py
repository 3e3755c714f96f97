"""`prune`: rounds of plan, cut and recalibrate on a copy, until the target is met."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils import _pytree as pytree
from tqdm import tqdm
from typing_extensions import Unpack

from selector.allocation import Stage, Target, Targets, Widths
from selector.cutting import Cut, apply_cuts, cuts_of
from selector.errors import SelectorError
from selector.groups import find_group, masked
from selector.method import Allocation, Method, Verify
from selector.myopic import Myopic
from selector.objective import Loss, evaluate
from selector.plan import Choice, Plan
from selector.planning import plan_stage, without
from selector.reading import Batches, call, check_batches, evaluating, probe_inputs
from selector.recalibration import recalibrate_batchnorm
from selector.report import Report, report_of
from selector.selection import SaliencySelector
from selector.tracing import Groups, exact_arithmetic, find_groups, retrace_groups

FineTune = Callable[[nn.Module, int], None]
"""`finetune(model, round)`: trains the model in place between rounds; rounds count from 1."""


@dataclass(frozen=True, eq=False)
class PruneResult:
    """A smaller network, and how it came about."""

    model: nn.Module
    """The pruned copy; the caller's network is as it was."""
    plan: Plan
    """All rounds as one plan, in the channel numbers of the unpruned network."""
    rounds: tuple[Plan, ...]
    """The plan of each round, in the channel numbers that the network had then."""
    report: Report


def prune(
    model: nn.Module,
    batches: Batches,
    *,
    criterion: str = "selector",
    rounds: int = 5,
    verify: Verify = 0,
    recalibrate: bool = True,
    finetune: FineTune | None = None,
    selector: SaliencySelector | None = None,
    loss: Loss | None = None,
    ignore: Iterable[str] = (),
    allocation: Allocation = "even",
    myopic: Myopic | None = None,
    max_ratio: float = 0.9,
    round_to: int = 1,
    test_batches: Batches | None = None,
    progress: bool = False,
    **target: Unpack[Targets],
) -> PruneResult:
    """Remove channels physically until the target is met, every group by the metric to trust there.

    In each round the network is scored, every group is routed to its metric, the channels are cut
    out, and BatchNorm's running statistics are estimated anew.

    Args:
        model: A trained network; a copy is pruned.
        batches: Re-iterable of (inputs, targets), for scores, recalibration and, where it is asked
            for, the oracle (then every second batch scores and the others measure).
        criterion: `selector`, a metric's name, or `oracle` (every arm's candidate is measured).
        rounds: Number of cuts; scores and routes are made anew before each.
        verify: How many of the selector's candidates the oracle measures in every group and round,
            or `all`.
        recalibrate: Estimate BatchNorm's running statistics anew after every cut.
        finetune: Called with the pruned model and the number of the round after each.
        selector: Asked by criterion `selector` alone; the shipped one by default.
        loss: Mean loss of a batch; cross-entropy by default.
        ignore: Groups to leave alone, by name; a producer's name takes its whole group.
        allocation: `even`, the same share of every group, or `damage`, where the selector predicts
            the least loss change per unit saved, or `myopic`, with criterion `oracle`: one channel
            at a time over the whole network, as in arXiv 2004.03376 (with `rounds=1` and
            `recalibrate=False` exactly so).
        myopic: How that goes about it; as in the paper by default.
        max_ratio: Largest share of a group's channels that may go, in (0, 1).
        round_to: Widths that are left must be a multiple of this.
        test_batches: Images for the losses and accuracies of the report; `batches` by default.
        progress: Show progress bars.
        **target: One of `keep_macs`, `keep_params`, `keep_weights` or `ratio`; see `choose`.

    Raises:
        SelectorError: Unusable input, unknown names, a target that cannot be met, or a cut that
            does not do what masking promised. The caller's network is untouched in every case.
    """
    wanted = Target.of(target)
    method = Method(criterion, verify, selector, allocation, myopic).ready(wanted)
    if not isinstance(rounds, int) or rounds < 1:
        raise SelectorError(f"rounds={rounds!r} must be a whole number, 1 or more")
    check_batches(batches)
    judged_on = batches if test_batches is None else test_batches
    before = evaluate(model, judged_on, loss)
    probe = probe_inputs(model, batches)
    small = copy.deepcopy(model)
    groups = without(find_groups(small, probe), ignore)
    start, widths = groups.costs, Widths.of(groups.required(), max_ratio, round_to)
    first, plans = groups, []
    for number in tqdm(range(1, rounds + 1), "rounds", disable=not progress, leave=False):
        stage = Stage(groups, widths, wanted, share=number / rounds, start=start)
        plan = plan_stage(small, batches, stage, method, loss=loss, progress=progress)
        plans.append(plan)
        cut_as_promised(small, groups, plan, probe)
        if recalibrate:
            recalibrate_batchnorm(small, batches)
        if finetune is not None:
            finetune(small, number)
        groups = retrace_groups(small, probe, groups)
    after = evaluate(small, judged_on, loss)
    whole = combined(plans, first, groups)
    on = "calibration images" if test_batches is None else "test images"
    return PruneResult(small, whole, tuple(plans), report_of(plans, whole, before, after, on))


def apply_plan(model: nn.Module, plan: Plan, batches: Batches) -> nn.Module:
    """Carry out a plan on a copy of the network that it was made for.

    Args:
        model: The network; it stays as it is.
        plan: A plan of `choose`, or the one of a `PruneResult`.
        batches: A batch of inputs is run to follow the channels.

    Raises:
        SelectorError: The plan names a group or channel that the network does not have.
    """
    probe = probe_inputs(model, batches)
    small = copy.deepcopy(model)
    cut_as_promised(small, find_groups(small, probe), plan, probe)
    return small


def cut_as_promised(model: nn.Module, groups: Groups, plan: Plan, probe: object) -> tuple[Cut, ...]:
    """Cut a plan's channels out, in place, and make sure that masking had promised the same.

    Raises:
        SelectorError: The network's outputs on the probe batch are not those of the masked one.
    """
    removals = [(find_group(groups.required(), n), s) for n, s in plan.removals.items()]
    cuts = cuts_of(removals)
    with torch.no_grad(), evaluating(model), exact_arithmetic(model):
        with ExitStack() as stack:
            for group, channels in removals:
                stack.enter_context(masked(model, group, channels))
            promised = _floats(call(model, probe))
        apply_cuts(model, cuts)
        got = _floats(call(model, probe))
    for one, other in zip(promised, got, strict=True):
        gap, scale = float((one - other).abs().max()), float(one.abs().max())
        if not gap <= 1e-3 * scale + 1e-12:
            raise SelectorError(
                f"after the cut the outputs differ by {gap:.2g} from those that masking promised "
                f"(largest {scale:.2g}), although every group alone agreed; "
                f"name some of these in ignore: {', '.join(plan.removals)}"
            )
    return cuts


def _floats(outputs: object) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(outputs)
    return [x for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()]


def combined(plans: Sequence[Plan], first: Groups, last: Groups) -> Plan:
    """All rounds as one plan, in the channel numbers of the network before the first."""
    kept = {name: list(range(group.channels)) for name, group in first.prunable.items()}
    rows: dict[str, list[Choice]] = {}
    for plan in plans:
        for choice in plan.choices:
            gone = set(choice.remove)
            rows.setdefault(choice.group, []).append(choice)
            kept[choice.group] = [c for i, c in enumerate(kept[choice.group]) if i not in gone]
    choices = [_merged(rows[name], first, kept) for name in first.prunable if name in rows]
    return Plan(
        criterion=plans[0].criterion,
        choices=tuple(choices),
        macs_before=first.costs.total("macs"),
        macs_after=last.costs.total("macs"),
        parameters_before=first.costs.total("parameters"),
        parameters_after=last.costs.total("parameters"),
        refused=plans[0].refused,
        oracle_images=sum(plan.oracle_images for plan in plans),
    )


def _merged(rows: Sequence[Choice], first: Groups, kept: Mapping[str, list[int]]) -> Choice:
    """One group over all rounds; trusted is the metric that removed most, the latest of equals."""
    name = rows[0].group
    removed: dict[str, int] = {}
    for row in reversed(rows):
        removed[row.metric] = removed.get(row.metric, 0) + len(row.remove)
    trusted = max(removed, key=removed.__getitem__)
    last = next(row for row in reversed(rows) if row.metric == trusted)
    predicted = [row.predicted_nats for row in rows if row.predicted_nats is not None]
    channels = first.prunable[name].channels
    return Choice(
        group=name,
        channels=channels,
        remove=tuple(sorted(set(range(channels)) - set(kept[name]))),
        metric=trusted,
        runner_up=last.runner_up,
        fell_back=last.fell_back,
        predicted_nats=sum(predicted) if len(predicted) == len(rows) else None,
        measured=None,
        explanation=last.explanation,
    )
