"""The ways to prune that `networks` compares, and what is the same for all of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Literal, get_args

from selector.planning.criteria import Verify
from selector.planning.method import AllocationName
from selector.saliency.registry import arms
from training.benchmarks.networks.torch_pruning_rival import IMPORTANCES, Ranking

OWN_ALLOCATION: AllocationName = "damage"
"""Where the selector spends the budget by default."""

VERIFICATION = 2, 3
"""Of some candidates, and of all: changes when verification does, so that runs made before are not
taken for new ones."""


@dataclass(frozen=True)
class Ours:
    """One way of `selector.prune`."""

    criterion: str = "selector"
    verify: Verify = 0
    allocation: AllocationName = "even"
    learnt: Literal["nothing", "selector", "portfolio"] = "nothing"
    """What it knows of other networks."""
    recalibrate: bool = True
    compensate: bool = False
    networks: tuple[str, ...] | None = None
    """Run on these only, since it is too slow for the others; None for all."""
    default: bool = True
    """Whether it is run unless others are asked for."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of `selector.prune`."""
        names = ("criterion", "verify", "allocation", "recalibrate", "compensate")
        return {name: getattr(self, name) for name in names}

    @property
    def what(self) -> tuple[object, ...]:
        """What its runs depend on."""
        verification = (VERIFICATION[self.verify == "all"],) if self.verify else ()
        return *self.options.values(), self.learnt, *verification


@dataclass(frozen=True)
class Theirs:
    """One of Torch-Pruning's own ways."""

    importance: str
    ranking: Ranking
    networks: tuple[str, ...] | None = None
    default: bool = True

    @property
    def what(self) -> tuple[object, ...]:
        """What its runs depend on."""
        return self.importance, self.ranking, version("torch-pruning")


@dataclass(frozen=True)
class Reconstructing:
    """Channels by the lasso, what reads them refitted by least squares, layer by layer."""

    networks: tuple[str, ...] | None = None
    default: bool = True

    @property
    def what(self) -> tuple[object, ...]:
        """What its runs depend on."""
        return (RECONSTRUCTING,)


Method = Ours | Theirs | Reconstructing

RANDOM, RANK_MEAN, PORTFOLIO, MYOPIC = (
    "random",
    "rank mean of all metrics",
    "fixed portfolio of 3 + oracle",
    "myopic oracle",
)
RECONSTRUCTING = "lasso and least squares (arXiv 1707.06168)"
SELECTOR, VERIFY3, DEFAULT = "selector", "selector, verify=3", "selector, widths as by default"
COMPOSITION = "composition of arXiv 2004.03376"
_SMALL = ("founding_lenet-5", "founding_cifar10")


def always(metric: str) -> str:
    """The name of the method that trusts one metric everywhere."""
    return f"always {metric}"


_SELECTOR = Ours("selector", 0, OWN_ALLOCATION, "selector")


def _selector(verify: Verify, allocation: AllocationName = OWN_ALLOCATION) -> Ours:
    return replace(_SELECTOR, verify=verify, allocation=allocation)


SINGLES: Mapping[str, Ours] = {always(arm): Ours(arm) for arm in arms()}
SETS: Mapping[str, Ours] = {
    always(name): Ours(name)
    for name in ("reconstruction", "reconstruction_fisher", "joint_half", "column_subset")
}
PRICED: Mapping[str, Ours] = {
    f"{criterion}, the selector's shares": Ours(criterion, 0, OWN_ALLOCATION, "selector")
    for criterion in ("l1", "rank_mean", "taylor", "reconstruction", "reconstruction_fisher")
}
"""Other criteria with the widths that the selector's predictions lead to."""
RIVALS: Mapping[str, Theirs] = {
    f"torch-pruning {name} {ranking}": Theirs(name, ranking, default=name != "hessian")
    for name in IMPORTANCES
    for ranking in get_args(Ranking)
}
METHODS: Mapping[str, Method] = {
    SELECTOR: _SELECTOR,
    **SETS,
    **PRICED,
    **SINGLES,
    "selector, even": _selector(0, "even"),
    DEFAULT: replace(_SELECTOR, allocation="auto", default=False),
    RECONSTRUCTING: Reconstructing(),
    "selector, compensated": replace(_SELECTOR, compensate=True),
    "selector, not recalibrated": replace(_SELECTOR, recalibrate=False),
    **RIVALS,
    RANDOM: Ours("random"),
    RANK_MEAN: Ours("rank_mean"),
    "selector, verify=1": _selector(1),
    VERIFY3: _selector(3),
    PORTFOLIO: Ours("selector", "all", "even", "portfolio"),
    "selector, verify=3, even": _selector(3, "even"),
    MYOPIC: Ours("oracle"),
    "selector, verify=all": _selector("all"),
    COMPOSITION: Ours("oracle", allocation="myopic", networks=_SMALL),
}
"""Name -> method, in the order in which they are run: the cheap and the telling ones first."""

DRAWS = 3
"""Draws of calibration images."""
DRAWN = (
    SELECTOR,
    always("reconstruction"),
    "reconstruction, the selector's shares",
    always("l1"),
    "selector, even",
    "l1, the selector's shares",
    "rank_mean, the selector's shares",
    RANK_MEAN,
    always("taylor"),
    always("fisher"),
    "torch-pruning taylor global",
    "torch-pruning l1 global",
    always("reconstruction_fisher"),
    "reconstruction_fisher, the selector's shares",
    RECONSTRUCTING,
    RANDOM,
    VERIFY3,
)
"""Methods that are run with every draw, the others with the first alone."""
