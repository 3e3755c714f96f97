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
    repair: bool = False
    networks: tuple[str, ...] | None = None
    """Run on these only, since it is too slow for the others; None for all."""
    default: bool = True
    """Whether it is run unless others are asked for."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of `selector.prune`."""
        names = ("criterion", "verify", "allocation", "recalibrate", "compensate", "repair")
        return {name: getattr(self, name) for name in names}

    @property
    def what(self) -> tuple[object, ...]:
        """What its runs depend on."""
        verification = (VERIFICATION[self.verify == "all"],) if self.verify else ()
        # Runs from before there was repair stay valid: they had none.
        known = [value for name, value in self.options.items() if name != "repair" or value]
        return *known, self.learnt, *verification


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


Method = Ours | Theirs

RANDOM, RANK_MEAN, PORTFOLIO, MYOPIC = (
    "random",
    "rank mean of all metrics",
    "fixed portfolio of 3 + oracle",
    "myopic oracle",
)
SELECTOR, VERIFY3 = "selector", "selector, verify=3"
COMPOSITION = "composition of arXiv 2004.03376"
_SMALL = ("founding_lenet-5", "founding_cifar10")


def always(metric: str) -> str:
    """The name of the method that trusts one metric everywhere."""
    return f"always {metric}"


_SELECTOR = Ours("selector", 0, OWN_ALLOCATION, "selector")


def _selector(verify: Verify, allocation: AllocationName = OWN_ALLOCATION) -> Ours:
    return replace(_SELECTOR, verify=verify, allocation=allocation)


SINGLES: Mapping[str, Ours] = {always(arm): Ours(arm) for arm in arms()}
RIVALS: Mapping[str, Theirs] = {
    f"torch-pruning {name} {ranking}": Theirs(name, ranking, default=name != "hessian")
    for name in IMPORTANCES
    for ranking in get_args(Ranking)
}
METHODS: Mapping[str, Method] = {
    SELECTOR: _SELECTOR,
    **SINGLES,
    "selector, even": _selector(0, "even"),
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
