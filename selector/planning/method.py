"""How channels are chosen: by whose advice, how far verified, and where the budget goes."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from selector.errors import SelectorError
from selector.learning.selector import SaliencySelector
from selector.planning.composition.myopic import Myopic
from selector.planning.target import Target
from selector.saliency.registry import METRICS, arms, find_metric

Verify = int | Literal["all"]
Allocation = Literal["auto", "even", "damage", "myopic"]


@dataclass(frozen=True)
class Method:
    """How channels are chosen: by the selector, by one metric, or by the oracle over all arms."""

    criterion: str = "selector"
    verify: Verify = 0
    """Candidates that are tried where most is at stake; `all` for every arm's in every group."""
    selector: SaliencySelector | None = None
    allocation: Allocation = "auto"
    """Where channels go: the same share everywhere, where the predicted damage is least, or one by
    one where the oracle measures the least (`myopic`); `auto` is settled by `ready`."""
    myopic: Myopic | None = None
    """How the myopic composition goes about it; as in the paper where it is asked for by name."""
    compensate: bool = False
    """Whether a removed channel's mean is kept as a constant, in pruning and in verification."""
    recalibrate: bool = False
    """Whether BatchNorm is recalibrated after the cut, so that candidates are tried accordingly."""

    def __post_init__(self) -> None:
        """Refuse what would silently be something else."""
        if self.criterion not in ("selector", "oracle"):
            try:
                find_metric(self.criterion)
            except SelectorError:
                known = ", ".join(["selector", "oracle", *METRICS])
                raise SelectorError(
                    f"unknown criterion {self.criterion!r}; known: {known}; or a combination of "
                    "the grammar, such as activation.taylor.l2"
                ) from None
            if self.verify:
                raise SelectorError(
                    f"verify={self.verify!r} compares several metrics' candidates and criterion "
                    f"{self.criterion!r} has one; use criterion='selector', or verify=0"
                )
        elif self.criterion == "oracle" and self.verify:
            raise SelectorError(
                f"criterion 'oracle' measures every arm's candidate, so verify={self.verify!r} says"
                " nothing; leave it out, or use criterion='selector'"
            )
        if self.allocation not in get_args(Allocation):
            raise SelectorError(
                f"unknown allocation {self.allocation!r}; known: {', '.join(get_args(Allocation))}"
            )
        if self.allocation == "damage" and self.criterion != "selector":
            raise SelectorError(
                "allocation='damage' spends the budget by the selector's predictions, and "
                f"criterion {self.criterion!r} has none; use criterion='selector', or "
                "allocation='even'"
            )
        self._check_myopic()
        if self.verify != "all" and (not isinstance(self.verify, int) or self.verify < 0):
            raise SelectorError(f"verify={self.verify!r} must be 0, 1, 2, ... or 'all'")

    def _check_myopic(self) -> None:
        if self.allocation == "myopic" and self.criterion != "oracle":
            raise SelectorError(
                "allocation='myopic' removes what the oracle measures to be least harmful, one "
                f"channel at a time, and criterion {self.criterion!r} asks no oracle; use "
                "criterion='oracle', or allocation='even'"
            )
        if self.allocation == "myopic" and self.compensate:
            raise SelectorError(
                "compensate=True measures means once a round, and allocation='myopic' removes many "
                "channels one after the other in it; leave it out, or use "
                "selector.compose_myopically with Myopic(mode='compensated')"
            )
        if self.myopic is None:
            return
        if self.allocation != "myopic":
            raise SelectorError(
                f"myopic=Myopic(...) does nothing with allocation={self.allocation!r}; use "
                "criterion='oracle' and allocation='myopic'"
            )
        if self.myopic.mode == "compensated":
            raise SelectorError(
                "Myopic(mode='compensated') changes biases on the way, and a plan holds channels "
                "alone; use mode='plain', or selector.compose_myopically"
            )

    @property
    def metrics(self) -> list[str]:
        """The metrics whose scores it needs."""
        if self.criterion == "oracle":
            return arms()
        if self.criterion == "selector":
            assert self.selector is not None
            self.selector.check_fitted()
            return list(self.selector.metrics_)
        return [self.criterion]

    def __str__(self) -> str:
        """As it is named in plans and reports."""
        parts = [self.criterion]
        parts += [f"verify={self.verify}"] if self.verify else []
        parts += ["allocation by damage"] if self.allocation == "damage" else []
        parts += ["myopic composition"] if self.allocation == "myopic" else []
        parts += ["compensated"] if self.compensate else []
        return ", ".join(parts)

    @property
    def measures(self) -> bool:
        """Whether the oracle is called."""
        return self.criterion == "oracle" or bool(self.verify)

    def check(self, target: Target) -> None:
        """Make sure that the target and the allocation do not contradict each other.

        Raises:
            SelectorError: Both say where channels go.
        """
        if self.allocation in ("damage", "myopic") and target.measure == "channels":
            raise SelectorError(
                f"ratio takes the same share of every group and allocation={self.allocation!r} "
                "does not; use keep_macs, keep_params or keep_weights, or allocation='even'"
            )

        if self.allocation == "myopic" and target.measure == "latency":
            raise SelectorError(
                "keep_latency is foretold for whole widths and allocation='myopic' counts single "
                "channels; use keep_macs, or allocation='even' or 'damage'"
            )

    def ready(self, target: Target) -> "Method":
        """The same method, checked and settled.

        The shipped selector is taken where one is needed and not given. Where the allocation was
        left open, a budget goes where the selector predicts the least damage; a ratio, and the
        budget of a criterion that predicts nothing, evenly.
        """
        self.check(target)
        settled = self
        if self.allocation == "auto":
            foretold = self.criterion == "selector" and target.measure != "channels"
            settled = replace(settled, allocation="damage" if foretold else "even")
        if self.criterion == "selector" and self.selector is None:
            settled = replace(settled, selector=SaliencySelector.shipped())
        return settled
