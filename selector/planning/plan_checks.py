"""Checks of a saved plan, and why a plan has no explanations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from selector.errors import SelectorError
from selector.network.bare import is_side

if TYPE_CHECKING:
    from selector.planning.plan import Plan


def check_numbers(plan: "Plan", what: str) -> None:
    """Refuse costs and counts that no network has.

    Raises:
        SelectorError: A number out of range, or a group that is named twice.
    """
    for name in ("macs", "parameters"):
        before, after = (getattr(plan, f"{name}_{when}") for when in ("before", "after"))
        if not 0 <= after <= before:
            raise SelectorError(
                f"this is not {what}: {name}_after={after} must lie between 0 and "
                f"{name}_before={before}"
            )
    if plan.oracle_images < 0:
        raise SelectorError(f"this is not {what}: oracle_images={plan.oracle_images} is negative")
    groups = [choice.group for choice in plan.choices]
    if len(set(groups)) < len(groups):
        twice = next(name for name in groups if groups.count(name) > 1)
        raise SelectorError(f"this is not {what}: choices name group {twice!r} twice")


def check_cuts(plan: "Plan", what: str) -> None:
    """Refuse cuts that are not those of the choices: one of the two was edited.

    A channel of a group is one output of its root, or as many in every group of a convolution, or
    in every head. Where some outputs of the root have to stay, channels count those that do not.
    """
    roots = {cut.layer: cut.indices for cut in plan.cuts if cut.side == "out"}
    for cut in plan.cuts:
        if not is_side(cut.side):
            raise SelectorError(f"this is not {what}: {cut.side!r} is no side of a layer")
        if len(set(cut.indices)) < len(cut.indices) or min(cut.indices, default=0) < 0:
            raise SelectorError(
                f"this is not {what}: cuts of layer {cut.layer!r} repeat a position, or name one "
                "below 0"
            )
    for choice in plan.choices if plan.cuts else ():
        # Groups of a convolution follow one another, with a position of each channel in all.
        outputs = roots.get(choice.group, ())
        agree = {index % choice.channels for index in outputs} == set(choice.remove)
        if choice.group in plan.renumbered:
            agree = _agree(sorted(choice.remove), sorted(outputs))
        if not agree:
            raise SelectorError(
                f"remove of group {choice.group!r} is not what the plan's cuts take; where you "
                "edited it, take the field 'cuts' out, and give apply_plan batches"
            )


def _agree(channels: Sequence[int], outputs: Sequence[int]) -> bool:
    """Whether a root loses these outputs with these channels, as far as the numbers tell."""
    if not channels or len(outputs) % len(channels):
        return False
    fixed = [output - channel for output, channel in zip(outputs, channels, strict=False)]
    return len(outputs) > len(channels) or (fixed[0] >= 0 and fixed == sorted(fixed))


def unexplained(criterion: str) -> str:
    """Why a plan of some criterion has no explanations, and how to get one that has."""
    if criterion.startswith("selector"):
        return "the plan was made without explanations; make it again with this version"
    if criterion.startswith("oracle"):
        return (
            f"criterion {criterion!r} measures every metric's choice and takes the best, which "
            "needs no explanation; use criterion='selector' for a prediction that has one"
        )
    return (
        f"criterion {criterion!r} is one metric for every group, so there is nothing to explain; "
        "use criterion='selector'"
    )
