"""How channels are chosen: the criterion, where the budget goes, and what follows a cut."""

from dataclasses import dataclass
from typing import Literal, get_args

from selector.data.checks import check_criterion, check_kind
from selector.errors import SelectorError
from selector.learning.selector import SaliencySelector
from selector.planning.allocation import Allocation, EvenShares, LeastDamage
from selector.planning.candidates import Criterion
from selector.planning.composition.myopic import Myopic
from selector.planning.criteria import (
    OracleCriterion,
    SelectorCriterion,
    Verify,
    criterion_of,
)
from selector.planning.measured_damage import LeastMeasuredDamage
from selector.planning.target import Target

AllocationName = Literal["auto", "even", "damage", "measured", "myopic"]
"""Where the budget goes: the same share of every group, where the least damage is predicted, where
the least is measured group by group, or one channel at a time where the oracle measures the least;
`auto` goes by criterion, target, and whether the selector knows networks like this one."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How channels are chosen, with every name settled."""

    criterion: Criterion
    allocation: Allocation
    myopic: Myopic | None = None
    """Set where the composition of arXiv 2004.03376 chooses channels one at a time, in place of
    criterion and allocation."""
    compensate: bool = False
    """Whether a removed channel's mean is kept as a constant, in pruning and in verification."""
    recalibrate: bool = False
    """Whether BatchNorm is recalibrated after the cut, so that candidates are tried accordingly."""

    def __str__(self) -> str:
        """As plans and reports name it, before any."""
        return self.named(self.allocation.text)

    def named(self, allocation: str) -> str:
        """As plans and reports name it.

        Args:
            allocation: How the widths were settled, as `Allocated.text` says it.
        """
        parts = [str(self.criterion)]
        parts += [allocation] if allocation else []
        parts += ["myopic composition"] if self.myopic else []
        parts += ["compensated"] if self.compensate else []
        return ", ".join(parts)

    @property
    def pricing(self) -> SaliencySelector | None:
        """The selector whose predictions spend the budget; None for even shares."""
        return self.allocation.selector if isinstance(self.allocation, LeastDamage) else None

    @property
    def cautious(self) -> bool:
        """Whether that selector spends it only on networks like those that it learnt from."""
        return isinstance(self.allocation, LeastDamage) and self.allocation.otherwise is not None

    @property
    def selector(self) -> SaliencySelector | None:
        """The selector that chooses the channels; None for other criteria."""
        return self.criterion.selector if isinstance(self.criterion, SelectorCriterion) else None

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the selectors that choose and that spend the budget: what tells them from others."""
        return tuple(one.digest for one in (self.selector, self.pricing) if one is not None)


def method_of(
    criterion: str,
    target: Target,
    *,
    verify: Verify = 0,
    selector: SaliencySelector | None = None,
    allocation: AllocationName = "auto",
    myopic: Myopic | None = None,
    compensate: bool = False,
    recalibrate: bool = False,
) -> Method:
    """The method behind the public names.

    Where the allocation is left open, a budget goes where the selector predicts the least damage,
    or where the least is measured if the network is unlike those that it learnt from; a ratio, and
    the budget of a criterion that predicts nothing, is shared evenly.

    Raises:
        SelectorError: An unknown name, or options that contradict each other.
    """
    check_criterion(criterion)
    if selector is not None:
        check_kind("selector", selector, SaliencySelector, "see SaliencySelector.load(path)")
    if myopic is not None:
        check_kind("myopic", myopic, Myopic, "pass selector.Myopic(...)")
    if allocation not in get_args(AllocationName):
        raise SelectorError(
            f"unknown allocation {allocation!r}; known: {', '.join(get_args(AllocationName))}"
        )
    _check_allocation(criterion, allocation, target)
    _check_myopic(criterion, allocation, myopic, compensate)
    found = criterion_of(criterion, verify=verify, selector=selector)
    spent: Allocation = EvenShares()
    if allocation == "measured":
        spent = LeastMeasuredDamage()
    elif allocation == "damage":
        asked = found.selector if isinstance(found, SelectorCriterion) else selector
        spent = LeastDamage(asked or SaliencySelector.shipped())
    elif (
        allocation == "auto"
        and isinstance(found, SelectorCriterion)
        and target.measure != "channels"
    ):
        spent = LeastDamage(found.selector, otherwise=LeastMeasuredDamage())
    return Method(
        criterion=found,
        allocation=spent,
        myopic=(myopic or Myopic()) if allocation == "myopic" else None,
        compensate=compensate,
        recalibrate=recalibrate,
    )


def _check_allocation(criterion: str, allocation: AllocationName, target: Target) -> None:
    """Refuse an allocation that contradicts the criterion or the target."""
    if allocation == "myopic" and criterion != OracleCriterion.name:
        raise SelectorError(
            "allocation='myopic' removes what the oracle measures to be least harmful, one "
            f"channel at a time, and criterion {criterion!r} asks no oracle; use "
            "criterion='oracle', or allocation='even'"
        )
    if allocation in ("damage", "measured", "myopic") and target.measure == "channels":
        raise SelectorError(
            f"ratio takes the same share of every group and allocation={allocation!r} "
            "does not; use keep_macs, keep_params or keep_weights, or allocation='even'"
        )
    if allocation == "myopic" and target.measure == "latency":
        raise SelectorError(
            "keep_latency is predicted for whole widths and allocation='myopic' counts single "
            "channels; use keep_macs, or allocation='even' or 'damage'"
        )


def _check_myopic(
    criterion: str, allocation: AllocationName, myopic: Myopic | None, compensate: bool
) -> None:
    """Refuse options that do nothing with the myopic composition, or that it does nothing for."""
    if allocation == "myopic" and compensate:
        raise SelectorError(
            "compensate=True measures means once a round, and allocation='myopic' removes many "
            "channels one after the other in it; leave it out, or use "
            "selector.compose_myopically with Myopic(mode='compensated')"
        )
    if myopic is None:
        return
    if allocation != "myopic":
        raise SelectorError(
            f"myopic=Myopic(...) does nothing with allocation={allocation!r}; use "
            "criterion='oracle' and allocation='myopic'"
        )
    if myopic.mode == "compensated":
        raise SelectorError(
            "Myopic(mode='compensated') changes biases on the way, and a plan holds channels "
            "alone; use mode='plain', or selector.compose_myopically"
        )
