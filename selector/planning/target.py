"""The target of a pruning: what is to be left."""

from dataclasses import dataclass
from typing import Literal, TypedDict, cast

from selector.data.checks import check_mapping, share
from selector.errors import SelectorError, nearest
from selector.network.costs import Measure
from selector.planning.limits import Shares


class Targets(TypedDict, total=False):
    """The targets that `choose` and `prune` know; exactly one is given, or `ratios` alone."""

    keep_macs: float
    """Share of the multiply-accumulates that stays."""
    keep_params: float
    """Share of the parameters that stays."""
    keep_weights: float
    """Share of the convolutions' weights that stays."""
    keep_latency: float
    """Share of the time of a forward pass that stays, as measured on this machine."""
    ratio: float
    """Share of every group's channels that goes."""


MEASURES: dict[str, Measure | Literal["latency"]] = {
    "keep_macs": "macs",
    "keep_params": "parameters",
    "keep_weights": "weights",
    "keep_latency": "latency",
}


@dataclass(frozen=True)
class Target:
    """What is left when pruning is done."""

    measure: Measure | Literal["channels", "latency"]
    keep: float
    """Share of the measure that stays, between 0 and 1; one where `ratios` stands alone."""

    @classmethod
    def of(cls, targets: Targets, ratios: Shares | None = None) -> "Target":
        """The one target that was named.

        Args:
            targets: What the caller named.
            ratios: Shares asked of single groups; where they stand alone, nothing else goes.

        Raises:
            SelectorError: None, several, an unknown one, or one outside (0, 1).
        """
        known = [*MEASURES, "ratio"]
        given = cast(dict[str, float], targets)
        unknown = [name for name in given if name not in known]
        if unknown:
            raise SelectorError(f"unknown target {unknown[0]!r}; {nearest(unknown[0], known)}")
        check_mapping("ratios", ratios)
        if not given and ratios:
            return cls("channels", 1.0)
        if len(given) != 1:
            named = " and ".join(given) or "none"
            raise SelectorError(f"give exactly one target of {', '.join(known)}; got {named}")
        ((name, value),) = given.items()
        if name == "ratio":
            return cls("channels", 1 - share(name, value, "a share removed,"))
        return cls(MEASURES[name], share(name, value, "a share kept,"))

    @property
    def name(self) -> str:
        """The argument that names it."""
        if self.measure == "channels":
            return "ratio" if self.keep < 1 else "ratios"
        return next(name for name, measure in MEASURES.items() if measure == self.measure)
