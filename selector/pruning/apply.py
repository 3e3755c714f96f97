"""Carrying out a plan and fine-tuning, each checked against what it promised."""

from collections.abc import Callable

import torch
from torch import nn

from selector.data.batches import Batches
from selector.data.calibration import Calibration
from selector.data.checks import check_kind, check_model
from selector.data.exclusive import one_at_a_time
from selector.data.forward import probe_inputs
from selector.data.own_forward import Forward
from selector.errors import SelectorError
from selector.network.compensation import Compensation, apply_shifts, removed
from selector.network.copying import copy_of
from selector.network.coupling.law import difference, judging, rounding
from selector.network.groups import find_group
from selector.network.surgery import Cut, apply_cuts, cuts_of, outputs_gone
from selector.network.tracing import Groups, find_groups
from selector.planning.plan import Plan

FineTune = Callable[[nn.Module, int], None]
"""`finetune(model, round)`: trains the model in place between rounds; rounds count from 1."""


def fine_tune(model: nn.Module, finetune: FineTune, number: int) -> None:
    """Call a user's fine-tuning, and make sure that the network has the shapes that it had.

    Raises:
        SelectorError: A tensor that is gone, new or of another shape.
    """
    before = _shapes(model)
    finetune(model, number)
    after = _shapes(model)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if changed:
        name = changed[0]
        raise SelectorError(
            f"finetune changed {name!r} from shape {before.get(name, 'absent')} to "
            f"{after.get(name, 'absent')} in round {number}; it may change values, not shapes: "
            "layers are cut by prune alone"
        )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors = model.state_dict().items()  # What `get_extra_state` gives need not be tensors.
    return {name: tuple(x.shape) for name, x in tensors if isinstance(x, torch.Tensor)}


def cut_as_promised(
    model: nn.Module,
    groups: Groups,
    plan: Plan,
    probe: object,
    compensation: Compensation | None = None,
) -> tuple[Cut, ...]:
    """Cut a plan's channels out, in place, and make sure that masking had promised the same.

    Args:
        model: The network.
        groups: Its groups.
        plan: What goes.
        probe: A few images.
        compensation: What puts the channels' means in their place; None for plain removal.

    Raises:
        SelectorError: The network's outputs on the probe batch are not those of the masked one.
    """
    removals = [(find_group(groups.required(), n), s) for n, s in plan.removals.items()]
    cuts = cuts_of(removals)
    with judging(model, probe) as before, removed(model, removals, compensation):
        promised = before.outputs()
    if compensation is not None:
        # Before the cut: weights and means are still those of all channels.
        shifts = [s for group, gone in removals for s in compensation.of(model, group, gone)]
    apply_cuts(model, cuts)
    if compensation is not None:
        apply_shifts(model, shifts, outputs_gone(cuts))
    with judging(model, probe) as after:
        noise = max(before.noise, after.noise)
    if compensation is not None:
        # The constants are kept in the network's own precision.
        kept = max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())
        noise = max(noise, rounding(kept))
    gap = difference(before.whole, promised, after.whole, noise=noise)
    if gap is not None:
        raise SelectorError(
            f"after the cut the outputs are not those that masking promised ({gap}), although "
            f"every group alone agreed; name some of these in ignore: {', '.join(plan.removals)}"
        )
    return cuts


@one_at_a_time
def apply_plan(
    model: nn.Module,
    plan: Plan,
    batches: Batches | None = None,
    *,
    compensate: bool = False,
    forward: Forward | None = None,
) -> nn.Module:
    """Carry out a plan on a copy of the network that it was made for.

    Args:
        model: The network; it stays as it is.
        plan: A plan of `choose`, or the one of a `PruneResult` (its channels; what rounds did to
            biases and statistics is not in it).
        batches: Re-iterable of (inputs, targets). Without them the plan's cuts are carried out as
            they are written; with them the channels are followed through the network again, and the
            cut is checked on the first images.
        compensate: Keep the removed channels' means as constants in what reads them; needs batches.
        forward: Runs the network on a batch, as for `prune`.

    Raises:
        SelectorError: The plan was made for another network, or `compensate` without batches.
    """
    check_model(model)
    check_kind("plan", plan, Plan, "read one by Plan.load(path), or pass a result's .plan")
    small = copy_of(model)
    if batches is None:
        if compensate:
            raise SelectorError(
                "compensate=True measures the removed channels' means; pass batches, too"
            )
        _cut_as_written(small, plan)
        return small
    calibration = Calibration(batches)
    probe = probe_inputs(model, calibration)
    groups = find_groups(small, probe)
    compensation = None
    if compensate:
        compensation = Compensation.measured(small, calibration, groups.prunable.values())
    cut_as_promised(small, groups, plan, probe, compensation)
    return small


def _cut_as_written(model: nn.Module, plan: Plan) -> None:
    """Cut what the plan says of every layer.

    Raises:
        SelectorError: The network has another number of parameters than the plan's.
    """
    if plan.choices and not plan.cuts:
        raise SelectorError(
            "the plan was saved by an earlier version and does not say what goes from every layer; "
            "pass batches, so that the channels can be followed"
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters != plan.parameters_before:
        raise SelectorError(
            f"the plan was made for a network of {plan.parameters_before:.0f} parameters, and this "
            f"one has {parameters}; pass the network that the plan was made for"
        )
    apply_cuts(model, plan.cuts)
